"""Keep the contexts of every latent with the largest keys, while all contexts stream past.

With scores as keys these are the top contexts. With random numbers as keys they are a uniform sample of the contexts
in which the latent is on, as a reservoir is. Neither depends on how the stream is cut into batches.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs

_EMPTY = -1


class Peaks(NamedTuple):
    """Highest score per latent and context, and the first token that has it, sorted by latent and context.

    A context is identified by its first token.
    """

    latent: Int[Tensor, " peaks"]
    context: Int[Tensor, " peaks"]
    token: Int[Tensor, " peaks"]
    score: Float[Tensor, " peaks"]


class Placed(NamedTuple):
    """Contexts that entered, their slots, and their numbers among the candidates."""

    latent: Int[Tensor, " placed"]
    slot: Int[Tensor, " placed"]
    candidate: Int[Tensor, " placed"]


class KeptContexts:
    """Keeps, per latent, the `n` contexts with the largest keys so far, in fixed slots.

    Args:
        dtype: of the keys, which are never negative.
    """

    def __init__(self, d_sae: int, n: int, dtype: torch.dtype, device: torch.device) -> None:
        self.keys = torch.full((d_sae, n), _EMPTY, dtype=dtype, device=device)
        self.tokens = torch.full((d_sae, n), _EMPTY, device=device)
        """Index of each context's peak among all tokens; -1 where a slot is empty."""

    def add(self, latent: Int[Tensor, " peaks"], keys: Tensor, tokens: Int[Tensor, " peaks"]) -> Placed:
        """Add candidates, sorted by latent and then by token; of equal keys the earlier token's counts as larger."""
        n = self.keys.shape[1]
        fits = indices_of(keys > self.keys.min(dim=1).values[latent])
        fits = fits[keys[fits].argsort(descending=True, stable=True)]
        fits = fits[latent[fits].argsort(stable=True)]
        touched, row = latent[fits].unique(return_inverse=True)
        first = torch.searchsorted(row, torch.arange(len(touched), device=row.device))
        rank = torch.arange(len(row), device=row.device) - first[row]
        fits, row, rank = fits[rank < n], row[rank < n], rank[rank < n]
        candidate = fits.new_full((len(touched), n), _EMPTY)
        candidate[row, rank] = fits
        filled = candidate != _EMPTY
        all_keys = torch.cat([self.keys[touched], torch.where(filled, keys[candidate], _EMPTY)], dim=1)
        all_tokens = torch.cat([self.tokens[touched], torch.where(filled, tokens[candidate], _EMPTY)], dim=1)
        stays = torch.zeros_like(all_keys, dtype=torch.bool).scatter_(1, in_order(all_keys, all_tokens)[:, :n], True)
        # A latent loses as many contexts as it gains, so that both lists have the same rows.
        left, slot = (~stays[:, :n]).nonzero(as_tuple=True)
        entered = candidate[stays[:, n:]]
        self.keys[touched[left], slot] = keys[entered]
        self.tokens[touched[left], slot] = tokens[entered]
        return Placed(touched[left], slot, entered)


def in_order(keys: Tensor, tokens: Int[Tensor, "latent slot"]) -> Int[Tensor, "latent slot"]:
    """Order slots from the largest key to the smallest; of equal keys, the earlier token comes first.

    >>> in_order(torch.tensor([[1.0, 3.0, 3.0]]), torch.tensor([[5, 8, 2]]))
    tensor([[2, 1, 0]])
    """
    by_token = tokens.argsort(dim=1, stable=True)
    return by_token.gather(1, keys.gather(1, by_token).argsort(dim=1, descending=True, stable=True))


def peaks_of(pairs: ActivePairs, scores: Float[Tensor, " pairs"], context: Int[Tensor, " token"]) -> Peaks:
    """Find the strongest token of each latent in each context.

    Args:
        context: for every token, the first token of its context.
    """
    inside, index = (pairs.latent * pairs.n_tokens + context[pairs.token]).unique(return_inverse=True)
    highest = scores.new_zeros(len(inside)).scatter_reduce_(0, index, scores, "amax")
    at_peak = indices_of(scores == highest[index])
    token = torch.full_like(inside, pairs.n_tokens).scatter_reduce_(0, index[at_peak], pairs.token[at_peak], "amin")
    latent = torch.div(inside, pairs.n_tokens, rounding_mode="floor")
    return Peaks(latent, inside - latent * pairs.n_tokens, token, highest)


def random_keys(seed: int, latent: Int[Tensor, " peaks"], context: Int[Tensor, " peaks"]) -> Int[Tensor, " peaks"]:
    """Pseudo-random numbers in [0, 2^63) that depend on these three alone: SplitMix64 of each in turn.

    A generator's numbers would depend on the order, and so on the batches, in which contexts come.
    """
    mixed = _splitmix64(torch.full_like(latent, seed))
    return _splitmix64(_splitmix64(mixed + latent) + context) & (2**63 - 1)


def _splitmix64(state: Int[Tensor, " numbers"]) -> Int[Tensor, " numbers"]:
    """SplitMix64 (Steele, Lea & Flood 2014) in signed integers, whose products wrap around in the same way."""
    state = state + (0x9E3779B97F4A7C15 - 2**64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        state = (state ^ _shifted(state, shift)) * (factor - 2**64)
    return state ^ _shifted(state, 31)


def _shifted(state: Int[Tensor, " numbers"], n_bits: int) -> Int[Tensor, " numbers"]:
    """Shift right and fill with zeros, where torch fills with the sign."""
    return (state >> n_bits) & (2 ** (64 - n_bits) - 1)
