"""A stream of batches with a place in it that training can go back to."""

from collections import deque
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float
from sae_lens.training.prefetch import PrefetchingIterator
from torch import Tensor

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Batch = Float[Tensor, "batch d_in"]


@runtime_checkable
class Resumable(Protocol[T_co]):
    """An iterator that says where it is, and that a new one of its kind can be brought to the same place."""

    def __iter__(self) -> Iterator[T_co]: ...
    def __next__(self) -> T_co: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@runtime_checkable
class Approachable(Protocol):
    """What can go near another's place: that of one of the streams of a run that had another number of processes."""

    def approach(self, state: dict[str, Any], share: float) -> None:
        """Go `share` times as far as the other was."""


class Replayed(Iterator[T]):
    """Any iterator as a resumable one: as many items as were taken from it are made once more and dropped.

    >>> first, again = Replayed("abcde"), Replayed("abcde")
    >>> _ = next(first), next(first)
    >>> again.load_state_dict(first.state_dict())
    >>> next(again)
    'c'
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = iter(items)
        self._n_taken = 0

    def __next__(self) -> T:
        item = next(self._items)
        self._n_taken += 1
        return item

    def state_dict(self) -> dict[str, Any]:
        return {"n_taken": self._n_taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        n_wanted = state["n_taken"]
        self._n_taken = sum(1 for _ in islice(self._items, n_wanted))
        if self._n_taken < n_wanted:
            raise ValueError(
                f"The checkpoint was written {n_wanted} items into a stream that now ends after {self._n_taken}: give "
                "the stream that training began with, from its start."
            )

    def approach(self, state: dict[str, Any], share: float) -> None:
        self.load_state_dict({"n_taken": int(share * state["n_taken"])})


def resumable(items: Iterable[T]) -> Resumable[T]:
    """An iterator over the items that can be gone back to: its own way if it has one, otherwise by replaying it."""
    iterator = iter(items)
    return iterator if isinstance(iterator, Resumable) else Replayed(iterator)


def approach(items: Resumable[Any], state: dict[str, Any], share: float) -> None:
    """Have an iterator go `share` times as far as another was; a ValueError if it only goes to places of its own."""
    if not isinstance(items, Approachable):
        raise ValueError(
            f"The checkpoint is of another number of processes, and a {type(items).__name__} needs as many: "
            "resume with those, or start from its weights with from_pretrained_path."
        )
    items.approach(state, share)


class TrainingBatches(Iterator[Batch]):
    """A stream as training uses it: made ahead in a background thread if asked, and given back what was not used.

    Args:
        source: where batches come from; at its start, also when training is to go on from a checkpoint.
        n_ahead: how many are made ahead; 0 for none.
    """

    def __init__(self, source: Iterable[Batch], n_ahead: int = 0) -> None:
        self._source = resumable(source)
        self._n_ahead = n_ahead
        self._unused: deque[Batch] = deque()
        self._made_ahead: deque[Batch] = deque()
        self._thread: PrefetchingIterator[Batch] | None = None

    def __next__(self) -> Batch:
        if self._unused:
            return self._unused.popleft()
        if self._n_ahead == 0:
            return next(self._source)
        if self._thread is None:
            self._thread = PrefetchingIterator(self._noted(), prefetch=self._n_ahead)
        batch = next(self._thread)
        self._made_ahead.popleft()
        return batch

    def _noted(self) -> Iterator[Batch]:
        for batch in self._source:
            self._made_ahead.append(batch)
            yield batch

    def give_back(self, batch: Batch) -> None:
        """Make this the next batch."""
        self._unused.appendleft(batch)

    @contextmanager
    def paused(self) -> Generator[None]:
        """No batch is made meanwhile, so that what else uses the models is not disturbed."""
        with nullcontext() if self._thread is None else self._thread.paused():
            yield

    def state_dict(self) -> dict[str, Any]:
        """The place behind the last batch that was used."""
        with self.paused():
            return {"source": self._source.state_dict(), "unused": [*self._unused, *self._made_ahead]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a place; before the first batch."""
        self._source.load_state_dict(state["source"])
        self._unused = deque(state["unused"])

    def approach(self, state: dict[str, Any], share: float) -> None:
        """Go near the place of one of `share` times as many processes, all of which made an equal share of batches."""
        if isinstance(self._source, Replayed):  # whose items are batches, and these are as many on every process
            self._source.load_state_dict({"n_taken": state["source"]["n_taken"] - len(state["unused"])})
        else:
            approach(self._source, state["source"], share)

    def close(self) -> None:
        if self._thread is not None:
            self._thread.close()
