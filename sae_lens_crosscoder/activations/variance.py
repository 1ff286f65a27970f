"""Fraction of variance explained, per model and pooled, over a whole set of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.accumulators import Accumulator


class VarianceExplained(Accumulator):
    """Fraction of variance explained, `1 - sum_dim Var(residual) / sum_dim Var(h)`, streamed in float64.

    Batches may differ in size.

    >>> fve = VarianceExplained(StackedLayout((1, 1)))
    >>> h = torch.tensor([[0.0, 0.0], [2.0, 2.0]])
    >>> fve.add(h, torch.tensor([[0.0, 1.0], [2.0, 1.0]]))  # base exact, chat a constant
    >>> fve.per_model(), fve.pooled()
    ({'base': 1.0, 'chat': 0.0}, 0.5)
    """

    buffers = ("n_tokens", "_sums", "_origin")

    def __init__(self, layout: StackedLayout) -> None:
        self.layout = layout
        self.n_tokens = 0
        self._origin = torch.zeros(2, layout.d_in, dtype=torch.float64)
        self._sums = torch.zeros(4, layout.d_in, dtype=torch.float64)

    @torch.no_grad()
    def add(self, activations: Float[Tensor, "token d_in"], reconstruction: Float[Tensor, "token d_in"]) -> None:
        """Add a batch of activations and their reconstructions."""
        if len(activations) == 0:
            return
        target = activations.double()
        residual = target - reconstruction.double()
        if self.n_tokens == 0:
            # Variances do not depend on the origin, but a mean much larger than them would cancel their digits.
            self._origin = torch.stack([target[0], residual[0]]).cpu()
        origin = self._origin.to(target.device)
        target, residual = target - origin[0], residual - origin[1]
        sums = torch.stack([part.sum(dim=0) for part in (target, target.square(), residual, residual.square())])
        self._sums += sums.cpu()
        self.n_tokens += len(activations)

    def per_model(self) -> dict[str, float]:
        """FVE of each model, by the layout's names; nan for a model whose activations do not vary."""
        total, unexplained = self._variances()
        parts = zip(self.layout.names, self.layout.split(total), self.layout.split(unexplained), strict=True)
        return {name: _fraction_explained(variance.sum(), rest.sum()) for name, variance, rest in parts}

    def pooled(self) -> float:
        """FVE over all models at once, in which models with larger activations count for more."""
        total, unexplained = self._variances()
        return _fraction_explained(total.sum(), unexplained.sum())

    def _variances(self) -> tuple[Tensor, Tensor]:
        if self.n_tokens == 0:
            raise ValueError("The variance explained is undefined without tokens: the data source is empty.")
        mean, square, residual_mean, residual_square = self._sums / self.n_tokens
        return square - mean.square(), residual_square - residual_mean.square()


def _fraction_explained(total: Tensor, unexplained: Tensor) -> float:
    return float(1 - unexplained / total) if total > 0 else float("nan")
