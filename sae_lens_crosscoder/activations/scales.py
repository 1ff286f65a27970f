"""Activation scales: one factor per model, so that the model with larger activations does not dominate."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout

AUTO_SCALING_ABOVE = 1.25
"""Ratio of two models' mean norms per sqrt(d_model) above which `activation_scaling="auto"` scales."""


class MeanNorms:
    """Mean norm of each model's activations, streamed, and the factors that scale it to sqrt(d_model).

    This is SAELens's `expected_average_only_in` once per model instead of once for the stack.

    >>> norms = MeanNorms(StackedLayout((1, 1)))
    >>> norms.add(torch.tensor([[1.0, 10.0], [3.0, 30.0]]))
    >>> norms.scales()
    tensor([0.5000, 0.0500], dtype=torch.float64)
    """

    def __init__(self, layout: StackedLayout) -> None:
        self.layout = layout
        self.n_tokens = 0
        self._sums = torch.zeros(layout.n_sources, dtype=torch.float64)
        self._stacked_sum = 0.0

    @torch.no_grad()
    def add(self, activations: Float[Tensor, "token d_in"]) -> None:
        """Add the norms of a batch."""
        norms = self.layout.norms(activations.double())
        self._sums += norms.sum(dim=0).cpu()
        self._stacked_sum += torch.linalg.vector_norm(norms, dim=-1).sum().item()
        self.n_tokens += len(activations)

    def scales(self) -> Float[Tensor, " model"]:
        """c_m = sqrt(d_m) / mean |h^m|; a ValueError for a model whose activations are always zero."""
        for owner, total in zip(self.layout.owners, self._sums.tolist(), strict=True):
            if not (math.isfinite(total) and total > 0):
                raise ValueError(
                    f"The {owner} activations have mean norm {total / max(self.n_tokens, 1)} and cannot be "
                    "scaled. Check the hook, or train with activation_scaling='none'."
                )
        widths = torch.tensor(self.layout.d_models, dtype=torch.float64)
        return widths.sqrt() * self.n_tokens / self._sums

    def stacked_scale(self) -> float:
        """SAELens's single factor for the whole stack, sqrt(d_in) / mean |h|."""
        return math.sqrt(self.layout.d_in) * self.n_tokens / self._stacked_sum
