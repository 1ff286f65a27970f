"""Resumable iterators: streams that report their position and can be brought back to it."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


@runtime_checkable
class Resumable(Protocol[T_co]):
    """Protocol for iterators whose position a new iterator of the same kind can load."""

    def __iter__(self) -> Iterator[T_co]: ...
    def __next__(self) -> T_co: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: dict[str, Any], /) -> None: ...


@runtime_checkable
class FastForwardable(Protocol):
    """Protocol for iterators that can skip to about the position of a run with another number of processes."""

    def fast_forward(self, state: dict[str, Any], ratio: float) -> None:
        """Skip `ratio` times as many items as the iterator of that state had read."""


class Replayed(Iterator[T]):
    """Makes any iterator resumable: to resume, it reads and drops as many items as were taken before.

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
        n_to_skip = state["n_taken"]
        self._n_taken = sum(1 for _ in islice(self._items, n_to_skip))
        if self._n_taken < n_to_skip:
            raise ValueError(
                f"The checkpoint was written after {n_to_skip} items, but the stream ends after {self._n_taken}. Pass "
                "the stream that training started with, from its start."
            )

    def fast_forward(self, state: dict[str, Any], ratio: float) -> None:
        self.load_state_dict({"n_taken": int(ratio * state["n_taken"])})


def resumable(items: Iterable[T]) -> Resumable[T]:
    """A resumable iterator over the items: their own if it is resumable, otherwise one that replays them."""
    iterator = iter(items)
    return iterator if isinstance(iterator, Resumable) else Replayed(iterator)


def fast_forward(items: Resumable[Any], state: dict[str, Any], ratio: float) -> None:
    """Skip `ratio` times as many items as the iterator of that state had read, or raise a ValueError."""
    if not isinstance(items, FastForwardable):
        raise ValueError(
            f"The checkpoint was written by another number of processes, which {type(items).__name__} cannot resume. "
            "Use the same number, or start from the checkpoint's weights with from_pretrained_path."
        )
    items.fast_forward(state, ratio)
