"""Separates nested atoms: one that fires only where another does keeps nothing of the other.

If atom j fires only on tokens of atom i, adding any multiple of d_i to d_j leaves every reconstruction as it was: the
code of i makes up for it. Reconstruction then does not say what j is, and a concept of one model that fires only on a
strong shared one gets a part of it in both models. What decides is that a child should say nothing about the size of
its parent: s = Cov(f_i, f_j) / Var(f_j) over the tokens of i becomes 0 when d_j grows by s d_i.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs

MIN_INSIDE = 0.9
"""Share of a child's tokens on which its parent fires."""
_MAX_COVER = 0.8
"""Share of a parent's tokens on which a child may fire; above it the two can hardly be told apart."""
MIN_TOKENS = 20


class Nesting(NamedTuple):
    """Atoms that fire only where another atom fires."""

    parent: Int[Tensor, " nested"]
    child: Int[Tensor, " nested"]
    slope: Float[Tensor, " nested"]
    """Change of the parent's coefficient per unit of the child's."""


def code_products(
    pairs: ActivePairs, left: Float[Tensor, " pairs"], right: Float[Tensor, " pairs"]
) -> Float[Tensor, "d_sae d_sae"]:
    """Sparse sums over tokens of `left` of one atom times `right` of another, in float64."""
    index, shape = torch.stack([pairs.token, pairs.latent]), (pairs.n_tokens, pairs.d_sae)
    of_left, of_right = (
        torch.sparse_coo_tensor(index, entries.double(), shape, check_invariants=False) for entries in (left, right)
    )
    return torch.sparse.mm(of_left.T, of_right).coalesce()


@torch.no_grad()
def nesting_of(pairs: ActivePairs, values: Float[Tensor, " pairs"]) -> Nesting:
    """Find nested atoms in codes."""
    ones = torch.ones_like(values)
    together = code_products(pairs, ones, ones)
    (parent, child), n = together.indices(), together.values()
    n_tokens = torch.bincount(pairs.latent, minlength=pairs.d_sae)
    inside = (n >= MIN_INSIDE * n_tokens[child]) & (n <= _MAX_COVER * n_tokens[parent]) & (n >= MIN_TOKENS)
    # The sparse products have the same non-zero entries, in the same order.
    factors = ((values, values), (ones, values), (ones, values.square()))
    dots, sums, squares = (code_products(pairs, *factor).values()[inside] for factor in factors)
    parent, child = parent[inside], child[inside]
    of_parent = torch.zeros(pairs.d_sae, dtype=torch.float64, device=values.device)
    mean = of_parent.index_add(0, pairs.latent, values.double())[parent] / n_tokens[parent]
    covariance = dots - mean * sums
    variance = squares - sums.square() / n_tokens[parent]
    return Nesting(parent, child, (covariance / variance).to(values))


@torch.no_grad()
def separated(W_dec: Float[Tensor, "d_sae d_in"], nesting: Nesting, share: float = 1.0) -> Float[Tensor, "d_sae d_in"]:
    """Decoder with a share of what every child says about its parent moved into the child."""
    return W_dec.index_add(0, nesting.child, share * nesting.slope[:, None] * W_dec[nesting.parent])
