"""A sparse code as sorted pairs with float64 values: adding it to sums by row, and comparing it with another code."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs, pairs_of


@dataclass(frozen=True)
class SparseValues:
    """Values at pairs (token, latent), sorted by token, then by latent.

    >>> code = SparseValues.of(torch.tensor([[0.0, 2.0], [3.0, 4.0]]))
    >>> code.places_in(SparseValues.of(torch.tensor([[5.0, 6.0], [0.0, 7.0]])))
    tensor([ 1, -1,  2])
    """

    pairs: ActivePairs
    values: Float[Tensor, " pairs"]

    @classmethod
    def of(cls, feature_acts: Float[Tensor, "token d_sae"]) -> "SparseValues":
        """The values of a code, dense or sparse."""
        pairs, values = pairs_of(feature_acts)
        return cls(pairs, values.double())

    def with_values(self, values: Float[Tensor, " pairs"]) -> "SparseValues":
        """Other values at the same pairs."""
        return replace(self, values=values)

    def places_in(self, other: "SparseValues") -> Int[Tensor, " pairs"]:
        """Place of each pair among those of another code of the same tokens; -1 where that is off."""
        keys, own = other._keys, self._keys
        if len(keys) == 0:
            return torch.full_like(own, -1)
        place = torch.searchsorted(keys, own).clamp(max=len(keys) - 1)
        return torch.where(keys[place] == own, place, -1)

    def add_to(self, sums: Float[Tensor, "*row d_sae"], rows: Int[Tensor, " token"]) -> None:
        """Add each token's values to its row of the sums."""
        sums.view(-1).index_add_(0, self._places(rows), self.values)

    def count_in(self, counts: Int[Tensor, "row d_sae"], rows: Int[Tensor, " token"]) -> None:
        """Count each token's pairs in its row."""
        places = self._places(rows)
        counts.view(-1).index_add_(0, places, torch.ones_like(places))

    @property
    def _keys(self) -> Int[Tensor, " pairs"]:
        return self.pairs.token * self.pairs.d_sae + self.pairs.latent

    def _places(self, rows: Int[Tensor, " token"]) -> Int[Tensor, " pairs"]:
        return rows[self.pairs.token] * self.pairs.d_sae + self.pairs.latent
