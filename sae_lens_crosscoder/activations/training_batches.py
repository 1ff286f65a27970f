"""TrainingBatches: the stream of batches that training reads, prefetched in a background thread."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from jaxtyping import Float
from sae_lens.training.prefetch import PrefetchingIterator
from torch import Tensor

from sae_lens_crosscoder.activations.ordinary_batches import OrdinaryBatches
from sae_lens_crosscoder.activations.resumable import Replayed, fast_forward, resumable

Batch = Float[Tensor, "batch d_in"]


class TrainingBatches(Iterator[Batch]):
    """A resumable stream of batches; prefetched batches that were not used are saved with its state.

    Args:
        source: the batches, from their start, also when resuming from a checkpoint.
        n_ahead: number of batches to prefetch; 0 for none.

    Attributes:
        ordinary: leaves out the tokens that dominate, once it has limits.
    """

    def __init__(self, source: Iterable[Batch], n_ahead: int = 0) -> None:
        self._source = resumable(source)
        self.ordinary = OrdinaryBatches(self._source)
        self._n_ahead = n_ahead
        self._unused: deque[Batch] = deque()
        self._prefetched: deque[Batch] = deque()
        self._thread: PrefetchingIterator[Batch] | None = None

    def __next__(self) -> Batch:
        if self._unused:
            return self._unused.popleft()
        if self._n_ahead == 0:
            return next(self.ordinary)
        if self._thread is None:
            self._thread = PrefetchingIterator(self._recorded(), prefetch=self._n_ahead)
        batch = next(self._thread)
        self._prefetched.popleft()
        return batch

    def _recorded(self) -> Iterator[Batch]:
        for batch in self.ordinary:
            self._prefetched.append(batch)
            yield batch

    def give_back(self, batch: Batch) -> None:
        """Make this the next batch."""
        self._unused.appendleft(batch)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Pause prefetching, so that other code can use the models."""
        with nullcontext() if self._thread is None else self._thread.paused():
            yield

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch that was used."""
        with self.paused():
            return {
                "source": self._source.state_dict(),
                "ordinary": self.ordinary.state_dict(),
                "unused": [*self._unused, *self._prefetched],
            }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a position; call it before the first batch."""
        self._source.load_state_dict(state["source"])
        self.ordinary.load_state_dict(state["ordinary"])
        self._unused = deque(state["unused"])

    def fast_forward(self, state: dict[str, Any], ratio: float) -> None:
        """Resume near the position of a run with `ratio` times as many processes, each with an equal share."""
        n_waiting = self.ordinary.fast_forward(state["ordinary"], ratio) + len(state["unused"])
        if isinstance(self._source, Replayed):  # its items are batches, and every process reads equally many
            self._source.load_state_dict({"n_taken": state["source"]["n_taken"] - n_waiting})
        else:
            fast_forward(self._source, state["source"], ratio)

    def close(self) -> None:
        """Stop prefetching."""
        if self._thread is not None:
            self._thread.close()
