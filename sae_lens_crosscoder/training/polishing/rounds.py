"""Rounds of a polish: pursue, fit the decoder, replace atoms."""

import math
from collections.abc import Iterator
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import counts, gather_sum, run_starts
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.storage.accumulators import Accumulator
from sae_lens_crosscoder.training.polishing.families import with_lone_parents
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks
from sae_lens_crosscoder.training.polishing.nesting import nesting_of, separated
from sae_lens_crosscoder.training.polishing.pursuit import Pursuit, pursue
from sae_lens_crosscoder.training.polishing.reading import reading_rows
from sae_lens_crosscoder.training.polishing.refit import refit_decoder
from sae_lens_crosscoder.training.polishing.replacement import free_slots, missing_directions

Stop = Literal["k", "noise"]
_ATOMS_OVER_K = 3
_EXACT_UP_TO = 4096
_CANDIDATES_OVER_K = 16
# How often the largest correlation of pure noise with any of D atoms, 2 ln(D) s^2, an atom must explain.
_CAREFUL, _STRICT = 3.0, 15.0


class PolishState(Accumulator):
    """A dictionary in the scaled space, and what one round leaves for the next."""

    buffers = ("W_dec", "b_dec", "W_enc", "min_gain", "noise", "atoms_per_token", "is_hidden", "n_rounds")

    def __init__(self, W_dec: Float[Tensor, "d_sae d_in"], b_dec: Float[Tensor, " d_in"], hooks: LatentHooks) -> None:
        self.hooks = hooks
        """Which weights are 0, and stay so."""
        self.W_dec, self.b_dec = W_dec.detach().clone(), b_dec.detach().clone()
        self.W_enc = torch.zeros_like(self.W_dec)
        """Row by which a feed-forward encoder reads each atom, (d_sae, d_in)."""
        self.min_gain = torch.zeros((), dtype=torch.float64)
        """Energy that an atom must explain; 0 before the first round."""
        self.noise = torch.zeros((), dtype=torch.float64)
        """s^2, the median squared residual per coordinate."""
        self.atoms_per_token = torch.zeros((), dtype=torch.float64)
        """Mean number of atoms that the last round took."""
        self.is_hidden = torch.zeros(len(W_dec), dtype=torch.bool, device=W_dec.device)
        """Atoms that the hook they read does not show, and that no token may take: their slots are free."""
        self.n_rounds = 0


def polish_round(
    state: PolishState,
    x: Float[Tensor, "token d_in"],
    k: float | int,
    n_rounds: int,
    stop: Stop,
    n_candidates: int,
) -> None:
    """Make one round on fresh tokens of the scaled space, in place."""
    d_sae, max_atoms = len(state.W_dec), math.ceil(_ATOMS_OVER_K * k)
    if state.n_rounds == 0:
        first = _pursue(state, x, 0.0, max_atoms, n_candidates)
        state.min_gain.fill_(gain_that_leaves(first.gain, int(k * len(x))))
    elif stop == "noise":
        floor = 2 * math.log(d_sae) * float(state.noise)
        is_early = state.n_rounds <= n_rounds // 2
        state.min_gain.fill_(min(float(state.min_gain), _CAREFUL * floor) if is_early else _STRICT * floor)
    found = _pursue(state, x, float(state.min_gain), max_atoms, n_candidates)
    pairs, values = pairs_of_pursuit(found, d_sae)
    units = torch.nn.functional.normalize(state.W_dec, dim=1)
    W_dec, b_dec = refit_decoder(x, pairs, values, units, state.hooks)
    residual = x - b_dec - gather_sum(W_dec, pairs.latent, run_starts(pairs.token, len(x)), values)
    state.atoms_per_token.fill_(len(pairs) / len(x))
    nesting = state.hooks.allowed(nesting_of(pairs, values))
    # A slope has an error of its own, which half of the last one averages with that of the round before.
    share = 0.5 if state.n_rounds == n_rounds - 1 else 1.0
    fitted, W_dec = W_dec, separated(W_dec, nesting, share)
    state.noise.fill_(float(residual.square().sum(dim=1).median()) / x.shape[1])
    if stop == "k" and len(pairs):
        state.min_gain.mul_(len(pairs) / (k * len(x)))
    # The first round shows which atoms are used; the last two have the new ones settle.
    if 0 < state.n_rounds < n_rounds - 2:
        if stop == "noise":  # without a noise floor no token shows that a parent is alone
            _find_parents(state, W_dec, fitted, pairs, values, residual)
        _replace(W_dec, counts(pairs.latent, d_sae), residual, 2 * float(state.min_gain), state.hooks)
    state.W_dec.copy_(state.hooks.without_unwritten(W_dec))
    W_enc, is_hidden = reading_rows(x, pairs, values, W_dec, state.hooks, nesting, share)
    state.W_enc.copy_(W_enc)
    state.is_hidden.copy_(is_hidden)
    state.b_dec.copy_(b_dec)
    state.n_rounds += 1


def default_candidates(d_sae: int, k: float | int) -> int:
    """Atoms that a token may choose from: all of a small dictionary, 16 k of a large one.

    >>> default_candidates(4096, k=32), default_candidates(16_384, k=32)
    (4096, 512)
    """
    return d_sae if d_sae <= _EXACT_UP_TO else int(_CANDIDATES_OVER_K * k)


def gain_that_leaves(gains: Float[Tensor, "token slot"], n: int) -> float:
    """The explained energy that `n` of these atoms exceed; 0 if there are no more.

    >>> gain_that_leaves(torch.tensor([[5.0, 1.0], [4.0, 2.0]]), 2)
    2.0
    """
    positive = gains[gains > 0]
    return 0.0 if len(positive) <= n else float(positive.topk(n + 1).values[-1])


def pairs_of_pursuit(found: Pursuit, d_sae: int) -> tuple[ActivePairs, Float[Tensor, " pairs"]]:
    """Pairs with a positive coefficient, and the coefficients."""
    token, slot = (found.value > 0).nonzero(as_tuple=True)
    return ActivePairs(token, found.latent[token, slot], len(found.value), d_sae), found.value[token, slot]


def _pursue(state: PolishState, x: Tensor, min_gain: float, max_atoms: int, n_candidates: int) -> Pursuit:
    units = torch.nn.functional.normalize(state.W_dec, dim=1) * ~state.is_hidden[:, None]
    return pursue(x - state.b_dec, units, min_gain, max_atoms, n_candidates)


def _find_parents(
    state: PolishState, W_dec: Tensor, fitted: Tensor, pairs: ActivePairs, values: Tensor, residual: Tensor
) -> None:
    """Give the families of `fitted` new rows in `W_dec`, those of each hook by themselves."""
    noise, min_gain = float(state.noise) ** 0.5, float(state.min_gain)
    read = state.hooks.read.to(pairs.latent.device)[pairs.latent]
    for hook in range(state.hooks.n_hooks):
        at_hook = read == hook
        for atoms, rows in with_lone_parents(fitted, pairs[at_hook], values[at_hook], residual, noise, min_gain):
            W_dec[atoms] = rows


def _replace(W_dec: Tensor, n_used: Tensor, residual: Tensor, min_energy: float, hooks: LatentHooks) -> None:
    """Put missing directions in the place of free atoms that read the hook at which the direction starts."""
    slots = free_slots(torch.nn.functional.normalize(W_dec, dim=1), n_used).nonzero().squeeze(1)
    if len(slots) == 0:
        return
    found = missing_directions(residual, min_energy, len(slots))
    starts, read = hooks.starts(found), hooks.read.to(slots.device)[slots]
    for hook in range(hooks.n_hooks):
        at_hook, new = slots[read == hook], found[starts == hook]
        n = min(len(at_hook), len(new))
        W_dec[at_hook[:n]] = new[:n]


def tokens_of_rounds(
    batches: Iterator[Float[Tensor, "batch d_in"]], n_tokens: int, n_rounds: int
) -> Iterator[Float[Tensor, "token d_in"]]:
    """Yield the raw tokens of each round, at least `n_tokens` in whole batches.

    Raises:
        ValueError: if the stream ends before the last round.
    """
    for n in range(n_rounds):
        parts: list[Tensor] = []
        while sum(map(len, parts)) < n_tokens:
            batch = next(batches, None)
            if batch is None:
                raise ValueError(
                    f"The activations ended in round {n + 1} of n_rounds={n_rounds}, which take {n_tokens} tokens "
                    "each. Pass a longer (or repeating) stream."
                )
            parts.append(batch)
        yield torch.cat(parts)
