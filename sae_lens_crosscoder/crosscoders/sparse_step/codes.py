"""The part of a training step that touches only active pairs of token and latent.

Of a step's matrix products only the encoder's forward one is dense. Which pairs are on is found by screening its
output tile by tile (`screening.py`), so that no (batch, d_sae) array is kept; decoding and both weight gradients are
then sums over pairs (`kernels.py`). `DenseCode` is the same in plain matrix products: the reference.
"""

from collections.abc import Sequence
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding

from sae_lens_crosscoder.crosscoders.sparse_step.gradients import PreActivations, Reconstruction, ReconstructionLoss
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import indices_of
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.stacking import StackedLayout


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
        self._x, self._rows, self._b_enc, self._pre = x, W_enc.T, b_enc, pre

    @cached_property
    def values(self) -> Float[Tensor, " pairs"]:
        """Activations of the pairs, with gradient."""
        with torch.enable_grad():
            return PreActivations.apply(self._rows, self._b_enc, self._x, self._pre, self.pairs)  # pyright: ignore[reportReturnType]

    def reconstruct(
        self,
        W_dec: Float[Tensor, "d_sae d_in"],
        b_dec: Float[Tensor, " d_in"],
        target: Float[Tensor, "batch d_in"],
        layout: StackedLayout,
        kind: str,
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, ""]]:
        """`decode(W_dec) + b_dec`, without gradient, and its `reconstruction_loss` with gradient, in closed form.

        Autograd takes longer over these few products than the products themselves, when they are small.
        """
        weights = W_dec, b_dec, self._rows, self._b_enc
        return ReconstructionLoss.apply(*weights, self._x.detach(), self._pre, target, self.pairs, layout, kind)  # pyright: ignore[reportReturnType]

    def decode(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        return Reconstruction.apply(W_dec, self.values, self.pairs)  # pyright: ignore[reportReturnType]

    def decode_groups(
        self, W_dec: Float[Tensor, "d_sae d_in"], sizes: Sequence[int]
    ) -> list[Float[Tensor, "batch d_in"]]:
        written: list[Tensor] = []
        first = 0
        for rows in W_dec.split(list(sizes)):
            inside = indices_of((self.pairs.latent >= first) & (self.pairs.latent < first + len(rows)))
            pairs = self.pairs[inside]
            group = ActivePairs(pairs.token, pairs.latent - first, pairs.n_tokens, len(rows))
            written.append(Reconstruction.apply(rows, self.values[inside], group))  # pyright: ignore[reportArgumentType]
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
        values = self.values if torch.is_grad_enabled() else self._pre
        return values * norms.index_select(0, self.pairs.latent)

    def mean_score(self, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, ""]:
        return self.scores(norms).sum() / self.pairs.n_tokens

    def feature_acts(self) -> Tensor:
        """As a sparse tensor, which SAELens reads as well; without gradient."""
        return self.pairs.as_tensor(self._pre)


Code = DenseCode | SparseCode
