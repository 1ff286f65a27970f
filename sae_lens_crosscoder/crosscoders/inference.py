"""Crosscoders for reading: saved in canonical form, so that an activation is a score."""

from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.config import CrosscoderConfigBase
from sae_lens_crosscoder.crosscoders.views import CrosscoderViews


@dataclass
class ReLUCrosscoderConfig(CrosscoderConfigBase, StandardSAEConfig):
    """A crosscoder whose latents are on wherever they are positive; L1 training saves this."""

    @classmethod
    @override
    def architecture(cls) -> str:
        return "crosscoder"


@dataclass
class JumpReLUCrosscoderConfig(CrosscoderConfigBase, JumpReLUSAEConfig):
    """A crosscoder whose latents are on where their score exceeds a threshold; BatchTopK training saves this."""

    @classmethod
    @override
    def architecture(cls) -> str:
        return "jumprelu_crosscoder"


class InferenceCrosscoder(CrosscoderViews):
    """A crosscoder in canonical form: raw activations in, scores out."""

    @property
    def decoder_norms(self) -> Float[Tensor, "d_sae model"]:
        """n_j^m in the space the crosscoder was trained in, the one that Delta_norm is about.

        With `score="sum"` every row of a latent that writes anything sums to 1.
        """
        precision = torch.promote_types(self.W_dec.dtype, torch.float32)  # half precision has 23 values of Delta_norm
        scales = self.cfg.activation_scales or (1.0,) * self.layout.n_models
        return self.layout.norms(self.W_dec.to(precision)) * torch.tensor(
            scales, dtype=precision, device=self.W_dec.device
        )

    @override
    @torch.no_grad()
    def get_W_dec_norm(self) -> Float[Tensor, " d_sae"]:
        """s_j, which is 1 for every latent in canonical form, so SAELens's own norm fold changes nothing."""
        return torch.ones_like(self.b_enc)

    def to_jumprelu_sae(self) -> JumpReLUSAE:
        """The same function as a plain SAELens `jumprelu` SAE of the stack, for people without this package.

        Its input is the models' raw activations side by side, base first; `save_model(path)` writes it.
        """
        shared = {field.name for field in fields(JumpReLUSAEConfig)}
        cfg = JumpReLUSAEConfig(**{name: getattr(self.cfg, name) for name in shared})
        sae = JumpReLUSAE(cfg)
        threshold: Any = getattr(self, "threshold", torch.zeros_like(self.b_enc))
        weights = dict(W_enc=self.W_enc, b_enc=self.b_enc, W_dec=self.W_dec, b_dec=self.b_dec, threshold=threshold)
        sae.load_state_dict(weights)
        return sae


class ReLUCrosscoder(InferenceCrosscoder, StandardSAE):
    """`f_j = ReLU(sum_m <e_j^m, h^m> + b_j)`."""


class JumpReLUCrosscoder(InferenceCrosscoder, JumpReLUSAE):
    """As `ReLUCrosscoder`, with every score that is not above `threshold` set to 0."""


def require_inference(crosscoder: object, purpose: str) -> InferenceCrosscoder:
    """`crosscoder` itself, or an error if it is not the kind that can be read."""
    if isinstance(crosscoder, InferenceCrosscoder):
        return crosscoder
    raise ValueError(
        f"{purpose} needs an inference crosscoder, but got a {type(crosscoder).__name__}. A training crosscoder's "
        "selection depends on the batch it is in: save it with save_inference_model(path) and read it back with "
        "slc.load(path), or use what CrosscoderTrainingRunner.run() returns."
    )


def require_hook_name(crosscoder: InferenceCrosscoder) -> str:
    """The hook that the crosscoder was trained on, or an error if it does not say."""
    hook_name = crosscoder.cfg.metadata.hook_name
    if hook_name is None:
        raise ValueError(
            "This crosscoder does not say which hook it was trained on: set crosscoder.cfg.metadata.hook_name, "
            "such as 'blocks.13.hook_resid_post'."
        )
    return hook_name
