"""Resumable streaming accumulators, and the file that an interrupted stream of them resumes from."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sae_lens_crosscoder.storage.checksums import digest, named_fingerprint
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors

# Long enough that saving takes little of the run time, however large the accumulators are.
_SECONDS_BETWEEN_SAVES = 60.0
_CHECKSUM = "sha256"


@runtime_checkable
class ResumableAccumulator(Protocol):
    """Protocol for resumable streaming accumulators."""

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class Accumulator:
    """Base class of streaming sums: tensors (float64 for sums) and integer counts that a subclass names in `buffers`.

    >>> class Mean(Accumulator):
    ...     buffers = ("total", "n_tokens")
    ...
    ...     def __init__(self):
    ...         self.total, self.n_tokens = torch.zeros(1, dtype=torch.float64), 0
    >>> first, second = Mean(), Mean()
    >>> first.total += 3.0
    >>> first.n_tokens = 2
    >>> second.load_state_dict(first.state_dict())
    >>> second.total.item(), second.n_tokens
    (3.0, 2)
    """

    buffers: ClassVar[tuple[str, ...]] = ()

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that was added so far, for `load_state_dict`; tensors are not copied."""
        return {name: torch.as_tensor(getattr(self, name)) for name in self.buffers}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from the state of an accumulator that was built with the same arguments."""
        for name in self.buffers:
            buffer = getattr(self, name)
            if isinstance(buffer, Tensor):
                buffer.copy_(state[name])
            else:
                setattr(self, name, int(state[name]))


def zeros_on_demand(*shape: int, device: torch.device) -> Tensor:
    """Zeros for float64 sums; on a CPU, memory that is never written is never taken, as for shards without tokens.

    >>> zeros_on_demand(1, 2, device=torch.device("cpu"))
    tensor([[0., 0.]], dtype=torch.float64)
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=torch.float64, device=device)
    return torch.from_numpy(np.zeros(shape))  # torch.zeros writes all of it


class AccumulatorCheckpoint:
    """A file that holds accumulators, the number of batches added to them, and a description of their data.

    Args:
        path: the checkpoint file; it need not exist, but its folder must.
        work: the name of the work, such as "diagnosis".
        accumulators: the accumulators to save and load, by name.
        origin: a description of the data by name, such as the crosscoder's checksum; a file of other data is refused.
    """

    def __init__(
        self,
        path: str | Path,
        work: str,
        accumulators: Mapping[str, ResumableAccumulator],
        origin: Mapping[str, str],
    ) -> None:
        self._path = Path(path)
        self._work = work
        self._accumulators = accumulators
        self._origin = origin
        self._saved_at = time.monotonic()
        if not self._path.parent.is_dir():
            raise ValueError(f"checkpoint_path={str(path)!r} is in a folder that does not exist: create it first.")

    def resume(self) -> int:
        """Load the accumulators if the file exists, and return the number of batches already added."""
        if not self._path.exists():
            return 0
        try:
            tensors, metadata = load_tensors(self._path)
        except ValueError as error:
            raise ValueError(f"{self._named} is not a checkpoint of a {self._work}: {error}") from error
        self._validate_origin(metadata)
        if metadata.pop(_CHECKSUM, None) != _checksum(tensors, metadata):
            raise ValueError(
                f"{self._named}: checksum mismatch: the file was corrupted or edited. Delete it to start over."
            )
        for name, accumulator in self._accumulators.items():
            state = {key: tensor for key, tensor in tensors.items() if key.startswith(f"{name}.")}
            accumulator.load_state_dict({key.removeprefix(f"{name}."): tensor for key, tensor in state.items()})
        return int(metadata["n_batches"])

    def save_if_due(self, n_batches: int) -> None:
        """Save atomically, unless the last save was less than a minute ago."""
        if time.monotonic() - self._saved_at < _SECONDS_BETWEEN_SAVES:
            return
        states = {name: accumulator.state_dict() for name, accumulator in self._accumulators.items()}
        tensors = {f"{name}.{key}": tensor.cpu() for name, state in states.items() for key, tensor in state.items()}
        metadata = {**self._origin, "work": self._work, "n_batches": str(n_batches)}
        save_tensors(tensors, self._path, {**metadata, _CHECKSUM: _checksum(tensors, metadata)})
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the file after the work is done."""
        self._path.unlink(missing_ok=True)

    @property
    def _named(self) -> str:
        return f"checkpoint_path={str(self._path)!r}"

    def _validate_origin(self, metadata: Mapping[str, str]) -> None:
        if metadata.get("work") != self._work:
            work = metadata.get("work", "something else")
            raise ValueError(
                f"{self._named} is not a checkpoint of a {self._work}, but of a {work}: give another path."
            )
        for name, value in self._origin.items():
            if metadata.get(name) != value:
                raise ValueError(
                    f"{self._named} was written by a {self._work} with another {name}, so it cannot be resumed: delete "
                    "the file to start over, or give another path."
                )


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    return digest([metadata, named_fingerprint(tensors)])
