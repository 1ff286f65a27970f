"""Differences between the two groups of a contrast, in latents and in activations, from streamed sums."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.analysis.contrasts.auroc import auroc
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_ROWS = 256
"""Rows encoded at a time, so that wide crosscoders need little memory."""


@dataclass(frozen=True)
class GroupDifferences:
    """Differences of means between the positive and the negative prompts of a contrast, in float64."""

    feature_acts: Float[Tensor, " d_sae"]
    """Df_j, the difference of the groups' mean activations of each latent."""
    standard_error: Float[Tensor, " d_sae"]
    """Standard error of Df_j over prompts."""
    frac_on_positive: Float[Tensor, " d_sae"]
    """Share of positive prompts on which each latent is active."""
    frac_on_negative: Float[Tensor, " d_sae"]
    activations: Float[Tensor, " d_in"]
    """Dmu, the difference of the groups' mean stacked activations."""


@torch.no_grad()
def group_differences(
    crosscoder: InferenceCrosscoder,
    positive: Float[Tensor, "positives d_in"],
    negative: Float[Tensor, "negatives d_in"],
) -> GroupDifferences:
    """Encode both groups part by part, and compare their means.

    Args:
        positive, negative: raw stacked activations, at least two rows of each.
    """
    (mean, variance, frac_on), (mean_negative, variance_negative, frac_on_negative) = (
        _moments(crosscoder, rows) for rows in (positive, negative)
    )
    return GroupDifferences(
        feature_acts=mean - mean_negative,
        standard_error=(variance / len(positive) + variance_negative / len(negative)).sqrt(),
        frac_on_positive=frac_on,
        frac_on_negative=frac_on_negative,
        activations=positive.double().mean(dim=0).cpu() - negative.double().mean(dim=0).cpu(),
    )


@torch.no_grad()
def separation(
    crosscoder: InferenceCrosscoder,
    positive: Float[Tensor, "positives d_in"],
    negative: Float[Tensor, "negatives d_in"],
    ids: Int[Tensor, " latent"],
) -> Float[Tensor, " latent"]:
    """AUROC of the chosen latents."""
    groups = [
        torch.cat([crosscoder.encode(part.to(crosscoder.W_dec))[:, ids].cpu() for part in rows.split(_ROWS)])
        for rows in (positive, negative)
    ]
    return auroc(*groups).double()


def _moments(
    crosscoder: InferenceCrosscoder, rows: Float[Tensor, "row d_in"]
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """Mean, variance (n - 1) and share of rows on which it is active, of each latent."""
    total, squares, n_on = (torch.zeros(crosscoder.cfg.d_sae, dtype=torch.float64) for _ in range(3))
    for part in rows.split(_ROWS):
        f = crosscoder.encode(part.to(crosscoder.W_dec)).double().cpu()
        total += f.sum(dim=0)
        squares += f.square().sum(dim=0)
        n_on += (f > 0).sum(dim=0)
    n = len(rows)
    mean = total / n
    return mean, ((squares - n * mean.square()) / (n - 1)).clamp(min=0), n_on / n
