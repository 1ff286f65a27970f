"""The one form in which crosscoders are saved: raw activations in, scores out."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout


class Weights(NamedTuple):
    """The four tensors of a crosscoder, in SAELens's shapes."""

    W_enc: Float[Tensor, "d_in d_sae"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]


def fold_scores(weights: Weights, norms: Float[Tensor, " d_sae"]) -> Weights:
    """The same crosscoder with activations that ARE the scores: `f_j s_j` in place of `f_j`.

    The reconstruction is unchanged, and s_j becomes 1. A latent with s_j = 0 writes nothing; its row, column and
    bias become 0, so that it stays silent (dividing by 0 would make it nan).

    Args:
        norms: s_j, the norm that scores are made of.
    """
    writes = norms > 0
    divisor = torch.where(writes, norms, torch.ones_like(norms))
    factor = torch.where(writes, norms, torch.zeros_like(norms))
    return Weights(
        W_enc=weights.W_enc * factor,
        b_enc=weights.b_enc * factor,
        W_dec=weights.W_dec * writes[:, None] / divisor[:, None],
        b_dec=weights.b_dec,
    )


def fold_activation_scales(
    weights: Weights,
    layout: StackedLayout,
    scales: Float[Tensor, " model"],
    means: Float[Tensor, " d_in"] | None = None,
) -> Weights:
    """The crosscoder that takes raw activations, given one trained on `c_m (h^m - mean_m)`.

    Activations and the threshold stay as they are: this fold comes AFTER `fold_scores`, never before, because it
    changes decoder norms but not scores. Its inverse is the fold with `1 / scales` and `-scales * means`.

    Args:
        scales: c_m, positive, one per model.
        means: mean_m, the models' side by side; None means 0.
    """
    factors = layout.expand(scales.to(weights.W_dec))
    b_enc, b_dec = weights.b_enc, weights.b_dec / factors
    if means is not None:
        # Large means cancel against large activations, and what is lost here is lost on every token.
        shift = (factors.double() * means.double()) @ weights.W_enc.double()
        b_enc = (b_enc.double() - shift).to(b_enc)
        b_dec = b_dec + means.to(b_dec)
    return Weights(W_enc=weights.W_enc * factors[:, None], b_enc=b_enc, W_dec=weights.W_dec / factors, b_dec=b_dec)
