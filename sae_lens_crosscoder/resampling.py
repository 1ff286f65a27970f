"""Resampling of independent units (blocks of tokens, conversations): the bootstrap and the paired sign-flip test.

Tokens of one context are not independent of each other, so both resample units that hold whole contexts.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor


def bootstrap_counts(n_units: int, n_resamples: int, seed: int) -> Float[Tensor, "resample unit"]:
    """Count how often each unit is drawn when `n_units` are drawn with replacement, as float64.

    Statistics of a resample follow from sums per unit: `counts @ sums`. All counts are 0 for fewer than two units,
    which say nothing about the spread, so that a ratio of resampled sums is nan.

    >>> bootstrap_counts(3, 4, seed=0).sum(dim=-1).tolist()
    [3.0, 3.0, 3.0, 3.0]
    """
    counts = torch.zeros(n_resamples, n_units, dtype=torch.float64)
    if n_units >= 2:
        generator = torch.Generator().manual_seed(seed)
        drawn: Int[Tensor, "resample unit"] = torch.randint(n_units, (n_resamples, n_units), generator=generator)
        counts.scatter_add_(-1, drawn, torch.ones_like(counts))
    return counts


def quantiles(
    values: Float[Tensor, "*rows resample"], levels: tuple[float, float] = (0.025, 0.975)
) -> Float[Tensor, "2 *rows"]:
    """Lower and upper quantile over resamples; nan for a row that contains nan.

    >>> quantiles(torch.arange(101.0), (0.05, 0.95))
    tensor([ 5., 95.])
    """
    if values.device.type != "cpu":
        return torch.quantile(values, values.new_tensor(levels), dim=-1)
    # numpy's sort is five times as fast as its quantiles, and puts nan last.
    ordered = torch.from_numpy(np.sort(values.numpy(), axis=-1))
    places = torch.tensor(levels, dtype=torch.float64) * (ordered.shape[-1] - 1)
    below = places.floor().long()
    weights = (places - below).to(values)
    bounds = torch.lerp(ordered[..., below], ordered[..., (below + 1).clamp(max=ordered.shape[-1] - 1)], weights)
    return torch.where(ordered[..., -1:].isnan(), torch.nan, bounds).movedim(-1, 0)


def standard_deviation(values: Float[Tensor, "*rows resample"]) -> Float[Tensor, "*rows"]:
    """Compute the standard deviation over resamples, with one degree of freedom less; in two passes, faster than torch.

    >>> standard_deviation(torch.tensor([1.0, 2.0, 3.0]))
    tensor(1.)
    """
    centred = values - values.mean(dim=-1, keepdim=True)
    return (centred.square_().sum(dim=-1) / (values.shape[-1] - 1)).sqrt()


def sign_flip_p_values(
    differences: Float[Tensor, "*rows unit"], n_resamples: int = 1000, seed: int = 0
) -> Float[Tensor, "*rows"]:
    """Two-sided p-value of a paired sign-flip permutation test of `differences`, summed per unit.

    Under the null hypothesis the two members of each pair can be exchanged, which flips the sign of their difference.
    The p-value is never below `1 / (1 + n_resamples)`.

    >>> sign_flip_p_values(torch.ones(20), n_resamples=99).item()
    0.01
    """
    generator = torch.Generator().manual_seed(seed)
    shape = (n_resamples, differences.shape[-1])
    signs = torch.randint(0, 2, shape, generator=generator).to(differences) * 2 - 1
    totals = differences @ torch.cat([torch.ones_like(signs[:1]), signs]).T
    # Rounding must not tell the observed total from an exchange of all pairs or of none.
    at_least_as_far = totals.abs() >= totals[..., :1].abs() * (1 - 1e-9)
    return at_least_as_far.double().mean(dim=-1)
