"""Pairs of token and latent that are active in a batch."""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of, run_starts, stable_order


class ByLatent(NamedTuple):
    """Pairs sorted by latent: which pair comes where, the tokens in that order, and where each latent's begin."""

    order: Int[Tensor, " pairs"]
    token: Int[Tensor, " pairs"]
    starts: Int[Tensor, " d_sae"]


@dataclass(frozen=True)
class ActivePairs:
    """Pairs (token, latent), sorted by token."""

    token: Int[Tensor, " pairs"]
    latent: Int[Tensor, " pairs"]
    n_tokens: int
    d_sae: int

    @classmethod
    def from_sorted_by_latent(
        cls, token: Int[Tensor, " pairs"], latent: Int[Tensor, " pairs"], n_tokens: int, d_sae: int
    ) -> tuple["ActivePairs", Int[Tensor, " pairs"]]:
        """The pairs, and where each of them stood among those given, which are sorted by latent and then by token."""
        order = stable_order(token, n_tokens)
        pairs = cls(token.index_select(0, order), latent.index_select(0, order), n_tokens, d_sae)
        places = torch.empty_like(order)
        places[order] = torch.arange(len(order), device=order.device)
        vars(pairs)["by_latent"] = ByLatent(places, token, run_starts(latent, d_sae))  # which is known already
        return pairs, order

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, kept: Tensor) -> "ActivePairs":
        """The pairs at ascending positions `kept`, or where the mask `kept` is true."""
        return ActivePairs(self.token[kept], self.latent[kept], self.n_tokens, self.d_sae)

    def of_chosen(self, position: Int[Tensor, " d_sae"], n_chosen: int) -> tuple["ActivePairs", Int[Tensor, " kept"]]:
        """The pairs of some latents, which `position` numbers anew (-1 for all others), and where they stand here."""
        new = position[self.latent]
        kept = indices_of(new >= 0)
        return ActivePairs(self.token[kept], new[kept], self.n_tokens, n_chosen), kept

    @cached_property
    def by_latent(self) -> ByLatent:
        """The same pairs in the order in which both weight gradients want them."""
        order = stable_order(self.latent, self.d_sae)
        return ByLatent(order, self.token.index_select(0, order), run_starts(self.latent, self.d_sae))

    def as_tensor(self, values: Float[Tensor, " pairs"]) -> Float[Tensor, "token d_sae"]:
        """The sparse tensor that holds `values` at the pairs, as SAELens reads and writes sparse activations."""
        indices, shape = torch.stack([self.token, self.latent]), (self.n_tokens, self.d_sae)
        return torch.sparse_coo_tensor(indices, values, shape, is_coalesced=True, check_invariants=False)


def pairs_of(feature_acts: Float[Tensor, "token d_sae"]) -> tuple[ActivePairs, Float[Tensor, " pairs"]]:
    """The pairs at which activations, dense or sparse, are not 0, and their values there.

    >>> pairs, values = pairs_of(torch.tensor([[0.0, 2.0], [0.0, 0.0], [3.0, 0.0]]))
    >>> pairs.token, pairs.latent, values
    (tensor([0, 2]), tensor([1, 0]), tensor([2., 3.]))
    """
    acts = feature_acts.coalesce() if feature_acts.is_sparse else feature_acts.to_sparse()
    token, latent = acts.indices()
    return ActivePairs(token, latent, *feature_acts.shape), acts.values()
