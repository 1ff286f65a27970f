"""The part of a training step that touches only active pairs of token and latent.

Of a step's matrix products only the encoder's forward one is dense. Which pairs are on is found by screening its
output tile by tile (`screening.py`), so that no (batch, d_sae) array is kept; decoding and both weight gradients are
then sums over pairs (`kernels.py`). `DenseCode` is the same in plain matrix products: the reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import (
    gather_dot,
    gather_sum,
    indices_of,
    run_starts,
    stable_order,
)


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
        return ByLatent(order, self.token[order], run_starts(self.latent, self.d_sae))

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


class DenseCode:
    """A batch's activations as an array, 0 where a latent is off, and its pre-activations."""

    def __init__(self, acts: Float[Tensor, "batch d_sae"], pre: Float[Tensor, "batch d_sae"]) -> None:
        self.acts = acts
        self.pre = pre

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        return self.acts @ W_dec

    def decode_groups(
        self, W_dec: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]
    ) -> list[Float[Tensor, "batch d_in"]]:
        """Decode each group of consecutive latents alone; the groups' sizes add up to d_sae."""
        groups = zip(self.acts.split(list(sizes), dim=1), W_dec.split(list(sizes)), strict=True)
        return [acts @ rows for acts, rows in groups]

    def pre_of(self, latents: Int[Tensor, " latents"]) -> Float[Tensor, "batch latents"]:
        """Pre-activations of a few latents on all tokens."""
        return self.pre[:, latents]

    def rows_of(
        self, weights: Float[Tensor, "d_sae d_in"], latents: Int[Tensor, " latents"]
    ) -> Float[Tensor, "latents d_in"]:
        """A few latents' weights."""
        return weights[latents]

    def scores(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        """`f_j s_j` of everything that is on, in no particular order."""
        return (self.acts * norms)[self.acts > 0]

    def mean_score(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        """The sum of a token's scores, averaged over tokens."""
        return (self.acts * norms).sum(dim=-1).mean()

    def feature_acts(self) -> Float[Tensor, "batch d_sae"]:
        """Activations under SAELens's name."""
        return self.acts


class SparseCode:
    """The same, kept as a value per active pair: `pre` must be `(x @ W_enc + b_enc)[token, latent]`."""

    def __init__(
        self,
        x: Float[Tensor, "batch d_in"],
        W_enc: Float[Tensor, "d_in d_sae"],
        b_enc: Float[Tensor, " d_sae"],
        pairs: ActivePairs,
        pre: Float[Tensor, " pairs"],
    ) -> None:
        self.pairs = pairs
        self._x, self._rows, self._b_enc = x, W_enc.T, b_enc
        self.values: Tensor = _PreActivations.apply(self._rows, b_enc, x, pre, pairs)  # pyright: ignore[reportAttributeAccessIssue]

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        return _Reconstruction.apply(W_dec, self.values, self.pairs)  # pyright: ignore[reportReturnType]

    def decode_groups(
        self, W_dec: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]
    ) -> list[Float[Tensor, "batch d_in"]]:
        written: list[Tensor] = []
        first = 0
        for rows in W_dec.split(list(sizes)):
            inside = indices_of((self.pairs.latent >= first) & (self.pairs.latent < first + len(rows)))
            pairs = self.pairs[inside]
            group = ActivePairs(pairs.token, pairs.latent - first, pairs.n_tokens, len(rows))
            written.append(_Reconstruction.apply(rows, self.values[inside], group))  # pyright: ignore[reportArgumentType]
            first += len(rows)
        return written

    def pre_of(self, latents: Int[Tensor, " latents"]) -> Float[Tensor, "batch latents"]:
        # Of the view whose gradient the active pairs make as well.
        return self._x @ self.rows_of(self._rows, latents).T + self._b_enc[latents]

    def rows_of(
        self, weights: Float[Tensor, "d_sae d_in"], latents: Int[Tensor, " latents"]
    ) -> Float[Tensor, "latents d_in"]:
        # With a sparse gradient, which autograd adds to that of the active pairs without an array of zeros.
        return embedding(latents, weights, sparse=True)

    def scores(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        return self.values * norms[self.pairs.latent]

    def mean_score(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        return self.scores(norms).sum() / self.pairs.n_tokens

    def feature_acts(self) -> Tensor:
        """As a sparse tensor, which SAELens reads as well; without gradient."""
        return self.pairs.as_tensor(self.values.detach())


Code = DenseCode | SparseCode


class _PreActivations(torch.autograd.Function):
    """Pre-activations of given pairs, computed before, with their gradient to the encoder and none to the input."""

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, b_enc: Tensor, x: Tensor, values: Tensor, pairs: ActivePairs) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pairs = pairs
        return values.clone()

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        pairs: ActivePairs = ctx.pairs
        (gradient,) = grad_outputs
        order, token, starts = pairs.by_latent
        rows_gradient = gather_sum(x, token, starts, gradient[order])
        b_gradient = gradient.new_zeros(pairs.d_sae).index_add_(0, pairs.latent, gradient)
        return rows_gradient, b_gradient, None, None, None


class _Reconstruction(torch.autograd.Function):
    """`sum_j f_ij d_j` over active pairs."""

    @staticmethod
    @override
    def forward(ctx: Any, W_dec: Tensor, values: Tensor, pairs: ActivePairs) -> Tensor:
        ctx.save_for_backward(W_dec, values)
        ctx.pairs = pairs
        return gather_sum(W_dec, pairs.latent, run_starts(pairs.token, pairs.n_tokens), values)

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        W_dec, values = ctx.saved_tensors
        pairs: ActivePairs = ctx.pairs
        (gradient,) = grad_outputs
        gradient = gradient.contiguous()
        order, token, starts = pairs.by_latent
        W_gradient = gather_sum(gradient, token, starts, values[order])
        return W_gradient, gather_dot(gradient, W_dec, pairs.token, pairs.latent), None
