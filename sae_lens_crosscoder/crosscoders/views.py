"""Each model's share of a crosscoder's weights."""

from typing import Any

import torch
from jaxtyping import Float
from sae_lens import SAE
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout


class CrosscoderViews(SAE[Any]):
    """Views that training and inference crosscoders share, one entry per model, base first."""

    b_enc: torch.nn.Parameter
    cfg: Any

    @property
    def layout(self) -> StackedLayout:
        return self.cfg.layout

    @property
    def decoders(self) -> tuple[Float[Tensor, "d_sae d_model"], ...]:
        """d_j^m: the direction that latent j writes into model m, in the units of the saved weights."""
        return self.layout.split(self.W_dec)

    @property
    def encoders(self) -> tuple[Float[Tensor, "d_sae d_model"], ...]:
        """e_j^m: the direction along which latent j reads model m."""
        return self.layout.split(self.W_enc.T)

    @property
    def decoder_biases(self) -> tuple[Float[Tensor, " d_model"], ...]:
        return self.layout.split(self.b_dec)

    @property
    def activation_scales(self) -> Float[Tensor, " model"]:
        """c_m, the factors of the trained space; all 1 when activations were not scaled."""
        scales = self.cfg.activation_scales or (1.0,) * self.layout.n_models
        return torch.tensor(scales, dtype=self.W_dec.dtype, device=self.W_dec.device)
