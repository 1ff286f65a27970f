"""Replaces unused and duplicate atoms by directions that many poorly explained tokens share."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_LEAST_TOKENS = 4
_DUPLICATE_COSINE = 0.95
_NEIGHBOUR_COSINE = 0.7
_LEAST_NEIGHBOURS = 2
_N_TOKENS = 512
_ROWS_AT_ONCE = 2048


def free_slots(units: Float[Tensor, "d_sae d_in"], n_used: Int[Tensor, " d_sae"]) -> Bool[Tensor, " d_sae"]:
    """Mark atoms on fewer than four tokens, and the rarer of two atoms with a cosine above 0.95."""
    free = n_used < _LEAST_TOKENS
    rank = torch.empty_like(n_used)
    rank[n_used.argsort(descending=True, stable=True)] = torch.arange(len(n_used), device=n_used.device)
    for first in range(0, len(units), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        commoner = (rank < rank[rows, None]) & (n_used >= _LEAST_TOKENS)
        free[rows] |= ((units[rows] @ units.T > _DUPLICATE_COSINE) & commoner).any(dim=1)
    return free


def missing_directions(
    residual: Float[Tensor, "token d_in"], min_energy: float, n_most: int
) -> Float[Tensor, "found d_in"]:
    """Directions that several of the 512 largest residuals share, the most common first.

    Args:
        min_energy: residuals with less squared length count for nothing.
        n_most: how many directions to return at most.
    """
    energy = residual.square().sum(dim=1)
    largest = energy.topk(min(_N_TOKENS, len(energy))).indices
    largest = largest[energy[largest] > min_energy]
    directions = torch.nn.functional.normalize(residual[largest], dim=1)
    near = directions @ directions.T > _NEIGHBOUR_COSINE
    open_ = torch.ones(len(directions), dtype=torch.bool, device=residual.device)
    found: list[Tensor] = []
    while len(found) < n_most and bool(open_.any()):
        n_near = (near & open_).sum(dim=1) * open_
        best = int(n_near.argmax())
        if n_near[best] < _LEAST_NEIGHBOURS:
            break
        members = near[best] & open_
        found.append(torch.nn.functional.normalize(directions[members].mean(dim=0), dim=0))
        open_ &= ~members
    return torch.stack(found) if found else residual.new_zeros(0, residual.shape[1])
