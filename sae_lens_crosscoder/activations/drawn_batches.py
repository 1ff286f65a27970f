"""DrawnBatches: random batches of rows that fit into memory, some of them drawn more often than others."""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override


class DrawnBatches(Iterator[Float[Tensor, "batch d_in"]]):
    """Endless batches of rows drawn with replacement.

    Args:
        rows: activations to draw from.
        batch_size: rows per batch.
        weights: how often each row is drawn, relative to the others; None for equally often. Rows at which a model
            decides are few, and drawing them 8 times as often makes a crosscoder cover them.

    Raises:
        ValueError: for no rows, or weights that are not one finite number per row, at least 0 and not all 0.

    >>> batches = DrawnBatches(torch.eye(2), batch_size=4, seed=0, weights=torch.tensor([0.0, 1.0]))
    >>> next(batches)[:, 1].tolist()
    [1.0, 1.0, 1.0, 1.0]
    """

    def __init__(
        self,
        rows: Float[Tensor, "row d_in"],
        batch_size: int,
        seed: int = 0,
        weights: Float[Tensor, " _"] | None = None,
    ) -> None:
        if len(rows) == 0 or batch_size < 1:
            raise ValueError(f"Got {len(rows)} rows and batch_size={batch_size}. Both must be at least 1.")
        weights = torch.ones(len(rows)) if weights is None else weights
        if weights.shape != (len(rows),):
            raise ValueError(f"weights has shape {tuple(weights.shape)} for {len(rows)} rows. Pass one weight per row.")
        if not (bool(weights.isfinite().all()) and float(weights.min()) >= 0 and float(weights.max()) > 0):
            raise ValueError(
                f"weights must be finite, at least 0 and not all 0, but they range from {float(weights.min()):g} to "
                f"{float(weights.max()):g}."
            )
        self._rows, self._batch_size = rows, batch_size
        self._generator = torch.Generator().manual_seed(seed)
        # By inverting the cumulative weights, because torch.multinomial takes at most 2^24 rows.
        self._cumulative = weights.double().cpu().cumsum(dim=0)

    @override
    def __next__(self) -> Float[Tensor, "batch d_in"]:
        places = torch.rand(self._batch_size, generator=self._generator, dtype=torch.float64) * self._cumulative[-1]
        chosen = torch.searchsorted(self._cumulative, places, right=True).clamp(max=len(self._rows) - 1)
        return self._rows[chosen.to(self._rows.device)]
