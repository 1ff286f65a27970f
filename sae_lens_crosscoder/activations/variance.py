"""Fraction of variance explained, per model and pooled, over a whole set of tokens."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.accumulators import Accumulator


class VarianceExplained(Accumulator):
    """Streams `1 - sum_dim Var(residual) / sum_dim Var(h)`; sums are float64 and batches may differ in size.

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
        if len(activations) == 0:
            return
        target = activations.double()
        residual = target - reconstruction.double()
        if self.n_tokens == 0:
            # Variances do not depend on it, but a mean much larger than them would cancel their digits.
            self._origin = torch.stack([target[0], residual[0]]).cpu()
        origin = self._origin.to(target.device)
        target, residual = target - origin[0], residual - origin[1]
        sums = torch.stack([part.sum(dim=0) for part in (target, target.square(), residual, residual.square())])
        self._sums += sums.cpu()
        self.n_tokens += len(activations)

    def per_model(self) -> dict[str, float]:
        """Keyed by the layout's names; nan for a model whose activations do not vary."""
        total, unexplained = self._variances()
        parts = zip(self.layout.names, self.layout.split(total), self.layout.split(unexplained), strict=True)
        return {name: _share(whole.sum(), rest.sum()) for name, whole, rest in parts}

    def pooled(self) -> float:
        """Over all models at once, so that the louder model counts for more."""
        total, unexplained = self._variances()
        return _share(total.sum(), unexplained.sum())

    def _variances(self) -> tuple[Tensor, Tensor]:
        if self.n_tokens == 0:
            raise ValueError("No tokens were added, so there is no variance to explain: the data source is empty.")
        mean, square, residual_mean, residual_square = self._sums / self.n_tokens
        return square - mean.square(), residual_square - residual_mean.square()


def _share(total: Tensor, unexplained: Tensor) -> float:
    return float(1 - unexplained / total) if total > 0 else float("nan")
