"""Finds which pairs of token and latent are on, without keeping or sorting all pre-activations."""

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import gather_dot, indices_above, indices_of
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs

Precision = Literal["float32", "bfloat16"]
ScreeningChoice = Literal["auto", "float32", "bfloat16"]
# Size of one tile of pre-activations: on a CPU it should stay in the cache.
_TILE_BYTES = {"cpu": 2**23}
_TILE_BYTES_ELSEWHERE = 2**28
# More candidates than this, per pair to be kept, and the screening bound moves up.
_MAX_CANDIDATES = 1.25
# Tokens on which a bound is guessed when the previous batch's says nothing about this one.
_N_SAMPLED = 64
# A bfloat16 has 8 significant bits, so a number is off by at most 2^-8 of itself; float32, in which sums are made,
# by 2^-24 per term.
_BFLOAT16_ERROR, _FLOAT32_ERROR = 2**-8, 2**-24
# What bfloat16 products want the width of their factors to be a multiple of.
_WIDTH_MULTIPLE = 32


class Found(NamedTuple):
    """Active pairs, and their pre-activations."""

    pairs: ActivePairs
    pre: Float[Tensor, " pairs"]


class Candidates(NamedTuple):
    """Pairs of token and latent, sorted by one of them, and their pre-activations."""

    token: Int[Tensor, " pairs"]
    latent: Int[Tensor, " pairs"]
    pre: Float[Tensor, " pairs"]
    is_sorted_by_token: bool

    def chosen(self, kept: Int[Tensor, " kept"], n_tokens: int, d_sae: int) -> Found:
        """The pairs at ascending positions `kept`."""
        token, latent, pre = (each.index_select(0, kept) for each in (self.token, self.latent, self.pre))
        if self.is_sorted_by_token:
            return Found(ActivePairs(token, latent, n_tokens, d_sae), pre)
        pairs, order = ActivePairs.from_sorted_by_latent(token, latent, n_tokens, d_sae)
        return Found(pairs, pre.index_select(0, order))


@cache
def screening_precision(choice: ScreeningChoice, device: torch.device) -> Precision:
    """`choice`, or for `auto` bfloat16 where the hardware multiplies it, several times faster than float32."""
    if choice != "auto":
        return choice
    if device.type == "cuda":
        # One that is not here, but planned for, is taken to be of 2020 or later.
        is_old = torch.cuda.is_available() and torch.cuda.get_device_capability(device) < (8, 0)
        return "float32" if is_old else "bfloat16"
    has_amx = device.type == "cpu" and torch.cpu.get_capabilities().get("amx_bf16", False)
    return "bfloat16" if has_amx else "float32"


@torch.no_grad()
def pairs_above(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    bounds: Float[Tensor, " d_sae"],
    precision: Precision = "float32",
) -> Found:
    """All pairs whose pre-activation exceeds their latent's bound, and the pre-activations.

    In bfloat16, the one dense product is a proven upper bound of `pre - bound`, and only pairs for which that is
    positive are computed in full precision: nothing is missed, and the result is that of float32.
    """
    if len(b_enc) == 0:  # as in a shard that holds none of the exclusive latents
        nothing = torch.zeros(0, dtype=torch.int64, device=x.device)
        return Found(ActivePairs(nothing, nothing, len(x), 0), x.new_zeros(0))
    if precision == "bfloat16":
        return _pairs_above_by_bfloat16(x, W_enc, b_enc, bounds)
    indices: list[Tensor] = []
    values: list[Tensor] = []
    for start, tile in _tiles(x, W_enc, lambda part, out: torch.addmm(b_enc, part, W_enc, out=out)):
        above = indices_above(tile, bounds)
        values.append(tile.view(-1)[above])
        indices.append(above + start * len(b_enc))
    return Found(_pairs(torch.cat(indices), len(x), len(b_enc)), torch.cat(values))


def candidates_above(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    bounds: Float[Tensor, " d_sae"],
    precision: Precision,
) -> Candidates:
    """The pairs of `pairs_above`, and perhaps some that rounding puts on either side of a bound.

    On a CPU some latents' pre-activations are made at a time, because a product copies the tokens for every tile,
    which are fewer numbers than the encoder has. Such pairs come sorted by latent.
    """
    if x.device.type != "cpu" or precision == "bfloat16" or x.dtype.itemsize < 4 or len(b_enc) == 0:
        pairs, pre = pairs_above(x, W_enc, b_enc, bounds, precision)
        return Candidates(pairs.token, pairs.latent, pre, is_sorted_by_token=True)
    rows, limits = W_enc.T, (bounds - b_enc).numpy()[:, None]
    indices: list[NDArray[np.int64]] = []
    values: list[NDArray[Any]] = []
    for start, tile in _tiles(rows, x.T, lambda part, out: torch.mm(part, x.T, out=out)):
        numbers = tile.numpy()
        above = np.flatnonzero(numbers > limits[start : start + len(tile)])
        values.append(numbers.reshape(-1).take(above))
        indices.append(above + start * len(x))
    flat = np.concatenate(indices)
    latent = flat // max(1, len(x))
    token, latents = torch.from_numpy(flat - latent * len(x)), torch.from_numpy(latent)
    pre = torch.from_numpy(np.concatenate(values)).add_(b_enc.index_select(0, latents))
    return Candidates(token, latents, pre, is_sorted_by_token=False)


def _pairs_above_by_bfloat16(x: Tensor, W_enc: Tensor, b_enc: Tensor, bounds: Tensor) -> Found:
    rows = W_enc.T  # contiguous, as our encoders are
    left, right = _bounding_factors(x, rows, b_enc - bounds)
    with _sums_in_float32():
        indices = [
            indices_above(tile) + start * len(b_enc)
            for start, tile in _tiles(left, right.T, lambda part, out: torch.mm(part, right.T, out=out))
        ]
    candidates = _pairs(torch.cat(indices), len(x), len(b_enc))
    pre = gather_dot(x, rows, candidates.token, candidates.latent) + b_enc[candidates.latent]
    above = indices_of(pre > bounds[candidates.latent])
    return Found(candidates[above], pre[above])


@contextmanager
def _sums_in_float32() -> Generator[None]:
    """Keeps CUDA from rounding partial sums of bfloat16 products to bfloat16, which the bound does not cover."""
    settings = torch.backends.cuda.matmul
    before = settings.allow_bf16_reduced_precision_reduction
    settings.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        settings.allow_bf16_reduced_precision_reduction = before


def _bounding_factors(
    x: Float[Tensor, "batch d_in"], rows: Float[Tensor, "d_sae d_in"], shift: Float[Tensor, " d_sae"]
) -> tuple[Float[Tensor, "batch width"], Float[Tensor, "d_sae width"]]:
    """Two bfloat16 matrices whose product, by row and row, is an upper bound of `x @ rows.T + shift`.

    Beside the rounded x and rows (x', w') they hold, as further columns, the shift in two parts and the largest error.
    That is, by Cauchy-Schwarz, `|x'w' - xw| <= |x'| |w' - w| + |x' - x| |w|`, where only `|w' - w|` is not computed but
    bounded.
    """
    d_in = x.shape[1]
    width = -(-(d_in + 3) // _WIDTH_MULTIPLE) * _WIDTH_MULTIPLE
    left = x.new_zeros(len(x), width, dtype=torch.bfloat16)
    left[:, :d_in] = x
    left[:, d_in : d_in + 2] = 1
    size, error = left[:, :d_in].to(x.dtype).norm(dim=1), (left[:, :d_in] - x).norm(dim=1)
    left[:, d_in + 2] = error + (_BFLOAT16_ERROR + d_in * _FLOAT32_ERROR) * size
    right = rows.new_empty(len(rows), width, dtype=torch.bfloat16)
    right[:, :d_in] = rows
    right[:, d_in + 3 :] = 0
    # Latents that can never be on have a bound of infinity, or of 0 / 0.
    shift = shift.nan_to_num(nan=-1e30, neginf=-1e30)
    right[:, d_in] = shift
    right[:, d_in + 1] = shift - right[:, d_in] + 2**-14 * shift.abs()
    right[:, d_in + 2] = 1.02 * rows.norm(dim=1)  # more than what rounding takes from this column and its counterpart
    return left, right


def tile_rows(device_type: str, d_sae: int, number_bytes: int) -> int:
    """Tokens whose pre-activations are made at a time.

    >>> tile_rows("cpu", 8192, number_bytes=4), tile_rows("cpu", 8192, number_bytes=2)
    (256, 512)
    """
    return max(1, _TILE_BYTES.get(device_type, _TILE_BYTES_ELSEWHERE) // (d_sae * number_bytes))


def _tiles(
    x: Float[Tensor, "batch width"], W: Float[Tensor, "width d_sae"], product: Callable[[Tensor, Tensor], Tensor]
) -> Iterator[tuple[int, Float[Tensor, "rows d_sae"]]]:
    """The product of x and W, some rows at a time and in one piece of memory: the first row's number, and the rows."""
    d_sae = W.shape[1]
    n_rows = max(1, min(len(x), tile_rows(x.device.type, d_sae, x.element_size())))
    memory = torch.empty(n_rows, d_sae, dtype=x.dtype, device=x.device)
    for start in range(0, max(1, len(x)), n_rows):  # one tile at least: no tokens have no pairs
        part = x[start : start + n_rows]
        yield start, product(part, memory[: len(part)])


def _pairs(flat: Int[Tensor, " pairs"], n_tokens: int, d_sae: int) -> ActivePairs:
    token = torch.div(flat, d_sae, rounding_mode="floor")
    return ActivePairs(token, flat - token * d_sae, n_tokens, d_sae)


class Screening:
    """Finds the largest scores of every batch without sorting all of them.

    Scores change little from step to step, so nearly all pairs lie below the smallest score that the previous batch
    selected. Only those above a bound a little lower are looked at; when they turn out to be too few, the bound is
    lowered and the search repeated, so the result is exact.
    """

    def __init__(self) -> None:
        self._smallest: float | None = None
        self._margin = 0.1

    def state_dict(self) -> dict[str, float | None]:
        return {"smallest": self._smallest, "margin": self._margin}

    def load_state_dict(self, state: dict[str, float | None]) -> None:
        assert state["margin"] is not None
        self._smallest, self._margin = state["smallest"], state["margin"]

    @torch.no_grad()
    def select(
        self,
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        norms: Float[Tensor, " d_sae"],
        n_keep: int,
        precision: Precision = "float32",
        collectives: Collectives = SINGLE_PROCESS,
    ) -> Found:
        """This process's share of the `n_keep` pairs with the largest positive scores `relu(pre) s_j`, or of all."""
        if self._smallest is None:
            bound = 0.8 * _sampled_bound(x, W_enc, b_enc, norms, n_keep, collectives)
        else:
            bound = self._smallest * (1 - self._margin)
        n_failed = 0
        while True:
            # 0 / 0 and 1 / 0 leave out latents with a norm of 0, whose score is never positive.
            candidates = candidates_above(x, W_enc, b_enc, bound / norms, precision)
            scores = candidates.pre * norms.index_select(0, candidates.latent)
            kept, smallest, n_candidates = collectives.top_scores(scores, n_keep)
            # Rounding could put a pair of just this score on either side of the bound.
            if bound == 0 or (n_candidates >= n_keep and smallest > bound * (1 + 1e-5)):
                break
            n_failed += 1
            self._margin = min(2 * self._margin, 0.5)
            bound = 0.5 * bound if n_failed < 4 else 0.0
            if n_failed == 1:
                bound = min(bound, 0.8 * _sampled_bound(x, W_enc, b_enc, norms, n_keep, collectives))
        if n_candidates > _MAX_CANDIDATES * n_keep:
            self._margin *= 0.9
        self._smallest = smallest or None
        return candidates.chosen(kept, len(x), len(b_enc))


def _sampled_bound(
    x: Tensor, W_enc: Tensor, b_enc: Tensor, norms: Tensor, n_keep: int, collectives: Collectives
) -> float:
    """The smallest of the largest scores of a few tokens, as many per token as in the whole batch; 0 if too few."""
    sample = x[:: max(1, len(x) // _N_SAMPLED)]
    scores = torch.addmm(b_enc, sample, W_enc).mul_(norms).view(-1)
    n = max(1, n_keep * len(sample) // len(x))
    return max(0.0, collectives.top_scores(scores, n).smallest)
