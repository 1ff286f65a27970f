"""Each model's share of a crosscoder's weights."""

from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout


class CrosscoderViews(SAE[Any]):
    """Views that training and inference crosscoders share, one entry per source: per model, base first, at one hook."""

    b_enc: torch.nn.Parameter
    cfg: Any

    @property
    def layout(self) -> StackedLayout:
        return self.cfg.layout

    @property
    def model_names(self) -> tuple[str | None, ...]:
        """Names of the models in the metadata, base first; None where unknown."""
        metadata, n_models = self.cfg.metadata, self.layout.n_models
        if n_models <= 2:
            return (metadata.model_name, metadata.chat_model_name)[:n_models]
        sources: list[dict[str, str | None]] = metadata.sources or []
        names = [source["model_name"] for source in sources[:: max(1, len(self.layout.hook_names))]]
        return tuple(names) if len(names) == n_models else (None,) * n_models

    @property
    def decoders(self) -> tuple[Float[Tensor, "d_sae d_model"], ...]:
        """d_j^m: the direction that latent j writes into model m, in the units of the saved weights."""
        return self.layout.split(self.W_dec)

    @property
    def encoders(self) -> tuple[Float[Tensor, "d_sae d_model"], ...]:
        """e_j^m: the direction along which latent j reads model m."""
        return self.layout.split(self.W_enc.T)

    @property
    def hooks_read(self) -> Int[Tensor, " d_sae"]:
        """The hook that each latent reads most, by its place among `layout.hook_names`; 0 if there is one hook.

        That is where its encoder, over all models, is longest; with weak causality it is 0 elsewhere.
        """
        n_hooks = max(1, len(self.layout.hook_names))
        norms = self.layout.norms(self.W_enc.detach().T).unflatten(-1, (-1, n_hooks))
        return norms.square().sum(dim=-2).argmax(dim=-1)

    @property
    def decoder_biases(self) -> tuple[Float[Tensor, " d_model"], ...]:
        return self.layout.split(self.b_dec)

    @property
    def activation_scales(self) -> Float[Tensor, " source"]:
        """c_m, the factors of the trained space; all 1 when activations were not scaled."""
        scales = self.cfg.activation_scales or (1.0,) * self.layout.n_sources
        return torch.tensor(scales, dtype=self.W_dec.dtype, device=self.W_dec.device)
