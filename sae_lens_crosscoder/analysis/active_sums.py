"""Sums over the tokens on which a latent is on: the one product that all scaling diagnostics share."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


class ActivePairs(NamedTuple):
    """The pairs of token and latent at which the latent is on, sorted by token, and its activation there."""

    token: Int[Tensor, " pairs"]
    latent: Int[Tensor, " pairs"]
    value: Float[Tensor, " pairs"]

    def of_tokens(self, start: int, stop: int) -> "ActivePairs":
        """Those of a range of tokens, which are then counted from 0."""
        first, last = torch.searchsorted(self.token, torch.tensor([start, stop], device=self.token.device)).tolist()
        return ActivePairs(self.token[first:last] - start, self.latent[first:last], self.value[first:last])


def active_pairs(feature_acts: Float[Tensor, "token d_sae"]) -> ActivePairs:
    """
    >>> active_pairs(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]])).token
    tensor([0, 2])
    """
    token, latent = feature_acts.nonzero(as_tuple=True)
    return ActivePairs(token, latent, feature_acts[token, latent])


def sums_over_active(
    pairs: ActivePairs, target: Float[Tensor, "token width"], power: int = 1
) -> tuple[Int[Tensor, " active"], Float[Tensor, "active width"]]:
    """`sum_t f_tj^power y_t` of every latent j that is on somewhere, and which latents those are, ascending.

    The work is that of the active pairs, not of all tokens times all latents. In float32 at least.

    >>> f = torch.tensor([[0.0, 2.0], [0.0, 1.0]])
    >>> sums_over_active(active_pairs(f), torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    (tensor([1]), tensor([[2., 1.]]))
    """
    latent, order = pairs.latent.sort(stable=True)
    latents, counts = latent.unique_consecutive(return_counts=True)
    precision = torch.promote_types(target.dtype, torch.float32)  # half-precision sums lose digits
    weights = pairs.value[order].to(precision).pow(power)
    starts = counts.cumsum(dim=0) - counts
    return latents, embedding_bag(
        pairs.token[order], target.to(precision), starts, mode="sum", per_sample_weights=weights
    )
