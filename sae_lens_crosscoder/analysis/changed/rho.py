"""rho: the distance of a latent's decoders between two models, in length or in direction."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder


@validate_arguments
def rho(base: Float[Tensor, "d_sae d_model"], chat: Float[Tensor, "d_sae d_model"]) -> Float[Tensor, " d_sae"]:
    """`|d^chat - d^base| / max(|d^chat|, |d^base|)` of every latent, from decoders in the trained space.

    0 for a latent that writes the same into both models, 1 for one that writes into one model only, up to 2 for
    opposite directions. Delta_norm compares lengths alone: a latent whose direction was turned has a Delta_norm of 1/2,
    but a rho above 0. nan for a latent that writes nothing.

    Args:
        base, chat: decoders of the two models, a row per latent.

    >>> rho(torch.tensor([[1.0, 0.0], [0.0, 0.0], [3.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [0.0, 4.0]]))
    tensor([0.0000, 1.0000, 1.2500])
    """
    norms = [torch.linalg.vector_norm(decoders, dim=-1) for decoders in (base, chat)]
    return torch.linalg.vector_norm(chat - base, dim=-1) / torch.maximum(*norms)


def rho_of(crosscoder: InferenceCrosscoder) -> Float[Tensor, " d_sae"]:
    """rho of every latent in float64; nan for all unless there are two models of one width."""
    layout = crosscoder.layout
    if not layout.is_pair or not layout.same_width:
        return torch.full((crosscoder.cfg.d_sae,), float("nan"), dtype=torch.float64)
    scaled = crosscoder.W_dec.detach().double() * layout.expand(crosscoder.activation_scales).double()
    return rho(*layout.split(scaled)).cpu()
