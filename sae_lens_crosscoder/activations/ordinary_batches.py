"""OrdinaryBatches: full batches without the tokens that dominate."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.activations.dominant_tokens import DominantTokens, NormLimits, token_norms
from sae_lens_crosscoder.stacking import StackedLayout

Batch = Float[Tensor, "batch d_in"]


class OrdinaryBatches(Iterator[Batch]):
    """Batches of a stream without its dominant tokens; later tokens fill their places, so batches stay full.

    Without limits, and as long as no token is left out, the batches are those of the stream itself.

    Attributes:
        limits: the limits in force; None until they are measured or loaded.
        left_out: how much was left out so far; None likewise.
    """

    def __init__(self, source: Iterator[Batch]) -> None:
        self._source = source
        self._rest: Tensor | None = None
        """Tokens that wait for the next batch."""
        self._batch_size = 0
        self.limits: NormLimits | None = None
        self.left_out: DominantTokens | None = None

    def first(self) -> Batch:
        """Read the stream's first batch, to measure limits on; it is served after `start`."""
        self._rest = self._read()
        self._batch_size = len(self._rest)
        return self._rest

    def start(self, limits: NormLimits) -> None:
        """Apply the limits from the first batch on."""
        self._apply(limits)
        if self._rest is not None:
            self._rest = self._ordinary(self._rest)

    @override
    def __next__(self) -> Batch:
        if self.limits is None:
            return next(self._source)
        while self._rest is None or len(self._rest) < self._batch_size:
            batch = self._read()
            rows, self._batch_size = self._ordinary(batch), len(batch)
            self._rest = rows if self._rest is None else torch.cat([self._rest.to(rows), rows])
        served, rest = self._rest[: self._batch_size], self._rest[self._batch_size :]
        self._rest = rest.clone() if len(rest) else None  # without the batches that it is a view of
        return served

    def _read(self) -> Batch:
        batch = next(self._source)
        if batch.ndim != 2 or batch.shape[0] == 0:
            raise ValueError(
                f"Activations must come as (batch, d_in) with at least one token, not {tuple(batch.shape)}."
            )
        return batch

    def _apply(self, limits: NormLimits) -> None:
        self.limits = limits
        self.left_out = None if limits.max_norms is None else DominantTokens(limits.layout)

    def _ordinary(self, batch: Batch) -> Float[Tensor, "_ d_in"]:
        assert self.limits is not None
        if self.left_out is None:
            self.limits.layout.split(batch)  # validates the width
            return batch
        norms = token_norms(batch, self.limits.layout)
        ordinary = self.limits.ordinary_norms(norms)
        self.left_out.add(norms, ordinary)
        return batch if bool(ordinary.all()) else batch[ordinary]

    def state_dict(self) -> dict[str, Any]:
        """Limits, counts and waiting tokens; the stream keeps its own state."""
        return {
            "d_models": None if self.limits is None else list(self.limits.layout.d_models),
            "hook_names": None if self.limits is None else list(self.limits.layout.hook_names),
            "max_norms": None if self.limits is None or self.limits.max_norms is None else list(self.limits.max_norms),
            "left_out": None if self.left_out is None else self.left_out.state_dict(),
            "rest": self._rest,
            "batch_size": self._batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the limits, counts and waiting tokens of a state."""
        if state["d_models"] is None:
            return
        max_norms = state["max_norms"]
        layout = StackedLayout(tuple(state["d_models"]), tuple(state.get("hook_names", ())))
        self._apply(NormLimits(layout, None if max_norms is None else tuple(max_norms)))
        if self.left_out is not None:
            self.left_out.load_state_dict(state["left_out"])
        self._rest, self._batch_size = state["rest"], state["batch_size"]

    def fast_forward(self, state: dict[str, Any], ratio: float) -> int:
        """Continue with the limits of a run with `ratio` times as many processes, and a share of its counts.

        Returns:
            The number of whole batches among its waiting tokens, which are dropped here.
        """
        self.load_state_dict(state)
        n_waiting = 0 if self._rest is None else len(self._rest) // max(1, self._batch_size)
        self._rest = None
        if self.left_out is not None:
            self.left_out.scale(ratio)
        return n_waiting
