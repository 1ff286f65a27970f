"""Fraction of variance explained, per model, pooled and of the models' difference, over a whole set of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.accumulators import Accumulator


class VarianceExplained(Accumulator):
    """Fraction of variance explained, `1 - sum_dim Var(residual) / sum_dim Var(h)`, streamed in float64.

    Batches may differ in size. The difference is that of the activations given, chat - base: give raw ones.

    >>> fve = VarianceExplained(StackedLayout((1, 1)))
    >>> h = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    >>> fve.add(h, torch.tensor([[0.0, 1.0], [2.0, 1.0]]))  # base exact, chat a constant
    >>> fve.per_source(), fve.pooled()
    ({'base': 1.0, 'chat': 0.0}, 0.5)
    >>> different = VarianceExplained(StackedLayout((1, 1)))
    >>> different.add(torch.tensor([[0.0, 0.0], [2.0, 6.0]]), torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    >>> different.difference()
    0.75
    """

    buffers = ("n_tokens", "_sums", "_origin")

    def __init__(self, layout: StackedLayout) -> None:
        self.layout = layout
        self.n_tokens = 0
        of_models = layout.of_models
        self._has_difference = of_models.is_pair and of_models.same_width
        width = layout.d_in + (of_models.d_models[0] if self._has_difference else 0)
        self._origin = torch.zeros(2, width, dtype=torch.float64)
        self._sums = torch.zeros(4, width, dtype=torch.float64)

    @torch.no_grad()
    def add(self, activations: Float[Tensor, "token d_in"], reconstruction: Float[Tensor, "token d_in"]) -> None:
        """Add a batch of activations and their reconstructions."""
        if len(activations) == 0:
            return
        target = self._with_difference(activations.double())
        residual = target - self._with_difference(reconstruction.double())
        if self.n_tokens == 0:
            # Variances do not depend on the origin, but a mean much larger than them would cancel their digits.
            self._origin = torch.stack([target[0], residual[0]]).cpu()
        origin = self._origin.to(target.device)
        target, residual = target - origin[0], residual - origin[1]
        sums = torch.stack([part.sum(dim=0) for part in (target, target.square(), residual, residual.square())])
        self._sums += sums.cpu()
        self.n_tokens += len(activations)

    def joined(self, other: "VarianceExplained") -> "VarianceExplained":
        """Sums over the tokens of both."""
        joined = VarianceExplained(self.layout)
        first, second = (self, other) if self.n_tokens else (other, self)
        joined.n_tokens, joined._origin = first.n_tokens + second.n_tokens, first._origin
        shift, n = (second._origin - first._origin).repeat_interleave(2, dim=0), second.n_tokens  # of x, x^2, r, r^2
        moved = second._sums + n * shift
        moved[1::2] = second._sums[1::2] + 2 * shift[1::2] * second._sums[0::2] + n * shift[1::2].square()
        joined._sums = first._sums + moved
        return joined

    def per_source(self) -> dict[str, float]:
        """FVE of each source, by the layout's names; nan for a source whose activations do not vary."""
        total, unexplained = (self.layout.split(part[: self.layout.d_in]) for part in self._variances())
        parts = zip(self.layout.names, total, unexplained, strict=True)
        return {name: _fraction_explained(variance.sum(), rest.sum()) for name, variance, rest in parts}

    def pooled(self) -> float:
        """FVE over all sources at once, in which those with larger activations count for more."""
        total, unexplained = (part[: self.layout.d_in] for part in self._variances())
        return _fraction_explained(total.sum(), unexplained.sum())

    def difference(self) -> float:
        """FVE of chat - base, at all hooks; nan unless there are two models of one width whose difference varies.

        The FVE of two similar models says nothing about what sets them apart. This one does.
        """
        total, unexplained = (part[self.layout.d_in :] for part in self._variances())
        return _fraction_explained(total.sum(), unexplained.sum())

    def all_figures(self) -> dict[str, float]:
        """Every FVE by name: each model's, `pooled`, and `difference`."""
        return {**self.per_source(), "pooled": self.pooled(), "difference": self.difference()}

    @property
    def models_are_identical(self) -> bool:
        """True if both models had exactly equal activations on every token."""
        differences = torch.cat([self._origin[:1], self._sums[:2]])[:, self.layout.d_in :]
        return self._has_difference and self.n_tokens > 0 and not bool(differences.any())

    def _with_difference(self, stacked: Float[Tensor, "token d_in"]) -> Float[Tensor, "token _"]:
        if not self._has_difference:
            return stacked
        base, chat = self.layout.of_models.split(stacked)
        return torch.cat([stacked, chat - base], dim=-1)

    def _variances(self) -> tuple[Tensor, Tensor]:
        if self.n_tokens == 0:
            raise ValueError("The variance explained is undefined without tokens: the data source is empty.")
        mean, square, residual_mean, residual_square = self._sums / self.n_tokens
        return square - mean.square(), residual_square - residual_mean.square()


def _fraction_explained(total: Tensor, unexplained: Tensor) -> float:
    return float(1 - unexplained / total) if total > 0 else float("nan")
