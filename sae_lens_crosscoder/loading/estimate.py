"""Estimate the threshold of a crosscoder whose file leaves it out."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.scores import score_norms
from sae_lens_crosscoder.loading.load import load_foreign

__all__ = ["estimate_theta"]

# Their TopK compares latents, not scores; a ReLU crosscoder of these layouts has the norm of its training instead.
_ON_LATENTS = ("crosscode", "dedicated_features", "kissane")


@validate_arguments
@torch.no_grad()
def estimate_theta(
    source: str | Path, activations: Float[Tensor, "token d_in"], k: float | int | None = None, **options: Any
) -> float:
    """Estimate `theta` of `load` for a TopK or BatchTopK file without a threshold.

    Above it, k latents per token are on, on average, in the units in which the file's own code compares them. A file
    that selects the k largest latents of every token is then read with k on average, and not on every token.

    Args:
        source: as `load` takes it.
        activations: raw activations of some thousand tokens, base first.
        k: latents per token; by default the file's.
        options: those of `load`, such as `model_order`.

    Returns:
        The threshold, for `load(source, theta=...)`.

    Raises:
        ValueError: for a file of this package, an unknown k, one that is not between 0 and the number of latents, and
            activations of another width.
    """
    foreign = load_foreign(source, **{**options, "allow_relu": True})
    if foreign.sources is not None:
        raise ValueError(f"{source} reads several hooks with a gate per hook: it has no one threshold to estimate.")
    found = foreign.details.get("k") if k is None else k
    weights, layout = foreign.weights, foreign.layout
    if found is None or not 0 < found < len(weights.b_enc):
        raise ValueError(
            f"k={found} must be between 0 and the {len(weights.b_enc)} latents: pass k=..., as in training."
        )
    x = activations.double()
    if foreign.means is not None:
        x = x - foreign.means.double()
    if foreign.scales is not None:
        x = layout.stack([part * scale for part, scale in zip(layout.split(x), foreign.scales, strict=True)])
    norm = "none" if foreign.format in _ON_LATENTS else foreign.score_norm
    norms = score_norms(weights.W_dec.double(), layout, norm)
    scores = (x @ weights.W_enc.double() + weights.b_enc.double()).relu() * norms
    n_on = round(found * len(x))
    if n_on < 1:
        raise ValueError(f"{len(x)} tokens are too few for k={found:g} latents per token: pass more activations.")
    return float(scores.flatten().topk(n_on + 1).values[-2:].mean())
