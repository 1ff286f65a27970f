"""The part of a training step that touches only active pairs of token and latent.

Of a step's matrix products only the encoder's forward one is dense. Which pairs are on is found by screening its
output tile by tile, so that no (batch, d_sae) array is kept; decoding and both weight gradients are then sums over
pairs, for which `embedding_bag` is the fast primitive on CPU and GPU alike. `DenseCode` is the same in plain matrix
products: the reference.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag
from typing_extensions import override

# Numbers in one tile of pre-activations: on a CPU it should stay in the cache.
_TILE = {"cpu": 1_000_000}
_TILE_ELSEWHERE = 64_000_000
# More candidates than this, per pair to be kept, and the screening bound moves up.
_MAX_CANDIDATES = 1.3


@dataclass(frozen=True)
class ActivePairs:
    """Pairs (token, latent), sorted by token."""

    token: Int[Tensor, " pairs"]
    latent: Int[Tensor, " pairs"]
    n_tokens: int
    d_sae: int

    def __len__(self) -> int:
        return len(self.token)

    def __getitem__(self, kept: Tensor) -> "ActivePairs":
        """The pairs at ascending positions `kept`."""
        return ActivePairs(self.token[kept], self.latent[kept], self.n_tokens, self.d_sae)


class DenseCode:
    """A batch's activations as an array, 0 where a latent is off."""

    def __init__(self, acts: Float[Tensor, "batch d_sae"]) -> None:
        self.acts = acts

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        return self.acts @ W_dec

    def scores(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        """`f_j s_j` of everything that is on, in no particular order."""
        return (self.acts * norms)[self.acts > 0]

    def mean_score(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """The sum of a token's scores, averaged over tokens."""
        return (self.acts * norms).sum(dim=-1).mean()

    def feature_acts(self) -> Float[Tensor, "batch d_sae"]:
        """What SAELens calls the activations."""
        return self.acts


class SparseCode:
    """The same, kept as a value per active pair."""

    def __init__(self, values: Float[Tensor, " pairs"], pairs: ActivePairs) -> None:
        self.values = values
        self.pairs = pairs

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        starts = _starts(self.pairs.token, self.pairs.n_tokens)
        return embedding_bag(self.pairs.latent, W_dec, starts, mode="sum", per_sample_weights=self.values)

    def scores(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        return self.values * norms[self.pairs.latent]

    def mean_score(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        return self.scores(norms).sum() / self.pairs.n_tokens

    def feature_acts(self) -> Tensor:
        """As a sparse tensor, which SAELens reads as well; without gradient."""
        indices = torch.stack([self.pairs.token, self.pairs.latent])
        shape = (self.pairs.n_tokens, self.pairs.d_sae)
        return torch.sparse_coo_tensor(indices, self.values.detach(), shape, is_coalesced=True, check_invariants=False)


Code = DenseCode | SparseCode


def tile_rows(device_type: str, d_sae: int) -> int:
    """Tokens whose pre-activations are held at a time.

    >>> tile_rows("cpu", 8192), tile_rows("cuda", 8192)
    (122, 7812)
    """
    return max(1, _TILE.get(device_type, _TILE_ELSEWHERE) // d_sae)


@torch.no_grad()
def pairs_above(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    bounds: Float[Tensor, " d_sae"],
) -> tuple[ActivePairs, Float[Tensor, " pairs"]]:
    """All pairs whose pre-activation exceeds their latent's bound, and the pre-activations."""
    d_sae = W_enc.shape[1]
    rows = tile_rows(x.device.type, d_sae)
    tile = torch.empty(min(rows, len(x)), d_sae, dtype=x.dtype, device=x.device)
    flat_indices: list[Tensor] = []
    values: list[Tensor] = []
    for start in range(0, len(x), rows):
        part = x[start : start + rows]
        pre = torch.addmm(b_enc, part, W_enc, out=tile[: len(part)])
        above = (pre > bounds).view(-1).nonzero().squeeze(-1)
        values.append(pre.view(-1)[above])
        flat_indices.append(above + start * d_sae)
    flat = torch.cat(flat_indices)
    token = torch.div(flat, d_sae, rounding_mode="floor")
    return ActivePairs(token, flat - token * d_sae, len(x), d_sae), torch.cat(values)


class Screening:
    """Finds the largest scores of every batch without sorting all of them.

    Scores change little from step to step, so nearly all pairs lie below the smallest score that the previous batch
    selected. Only those above a bound a little lower are looked at; when they turn out to be too few, the bound is
    lowered and the search repeated, so the result is exact.
    """

    def __init__(self) -> None:
        self._smallest = 0.0
        self._margin = 0.1

    def select(
        self,
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        norms: Float[Tensor, " d_sae"],
        n_keep: int,
    ) -> tuple[ActivePairs, Float[Tensor, " pairs"]]:
        """The `n_keep` pairs with the largest positive scores `relu(pre) s_j`, or all there are, and their pre."""
        bound = self._smallest * (1 - self._margin)
        while True:
            # 0 / 0 and 1 / 0 leave out latents with a norm of 0, whose score is never positive.
            candidates, pre = pairs_above(x, W_enc, b_enc, bound / norms)
            scores = pre * norms[candidates.latent]
            if len(candidates) <= n_keep:
                kept, is_exact = torch.arange(len(candidates), device=x.device), bound == 0
            else:
                kept = scores.topk(n_keep, sorted=False).indices.sort().values
                # Rounding could put a pair of just this score on either side of the bound.
                is_exact = bound == 0 or bool(scores[kept].min() > bound * (1 + 1e-5))
            if is_exact:
                break
            self._margin = 2 * self._margin
            bound = self._smallest * max(0.0, 1 - self._margin)
        if len(candidates) > _MAX_CANDIDATES * n_keep:
            self._margin *= 0.9
        self._margin = min(self._margin, 0.5)
        self._smallest = float(scores[kept].min()) if len(kept) else 0.0
        return candidates[kept], pre[kept]


class _PreActivations(torch.autograd.Function):
    """Pre-activations of given pairs, computed before, with their gradient to the encoder and none to the input."""

    @staticmethod
    @override
    def forward(ctx: Any, W_enc: Tensor, b_enc: Tensor, x: Tensor, values: Tensor, pairs: ActivePairs) -> Tensor:
        ctx.save_for_backward(x, pairs.token, pairs.latent)
        ctx.d_sae = pairs.d_sae
        return values.clone()

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x, token, latent = ctx.saved_tensors
        (gradient,) = grad_outputs
        latent, order = latent.sort(stable=True)
        starts = _starts(latent, ctx.d_sae)
        weights = gradient[order]
        W_gradient = embedding_bag(token[order], x, starts, mode="sum", per_sample_weights=weights)
        b_gradient = weights.new_zeros(ctx.d_sae).index_add_(0, latent, weights)
        return W_gradient.T, b_gradient, None, None, None


def pre_activations(
    W_enc: Float[Tensor, "d_in d_sae"],
    b_enc: Float[Tensor, " d_sae"],
    x: Float[Tensor, "batch d_in"],
    values: Float[Tensor, " pairs"],
    pairs: ActivePairs,
) -> Float[Tensor, " pairs"]:
    """`values`, which are `(x @ W_enc + b_enc)[token, latent]`, with that expression's gradient to the weights."""
    return _PreActivations.apply(W_enc, b_enc, x, values, pairs)  # pyright: ignore[reportReturnType]


def _starts(sorted_indices: Int[Tensor, " pairs"], n: int) -> Int[Tensor, " n"]:
    """Where each index's run begins: the offsets of embedding bags."""
    return torch.searchsorted(sorted_indices, torch.arange(n, device=sorted_indices.device))
