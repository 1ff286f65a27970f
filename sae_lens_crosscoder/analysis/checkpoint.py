"""Sums of a diagnosis on disk, from which one that was interrupted goes on as if nothing had happened."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# So that writing takes little of the time, however large the sums are.
_SECONDS_BETWEEN_SAVES = 60.0


@runtime_checkable
class StreamedSums(Protocol):
    """Whatever adds tokens up and can be stopped and gone on with."""

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None: ...


class SumsCheckpoint:
    """A file that holds sums, how many batches are in them, and what they are of.

    Args:
        path: where; nothing, or what a diagnosis of the same left there.
        sums: what to save and load, by name.
        origin: what the sums are of, such as the crosscoder and the data; a file of anything else is refused.
    """

    def __init__(self, path: str | Path, sums: Mapping[str, StreamedSums], origin: Mapping[str, str]) -> None:
        self._path = Path(path)
        self._sums = sums
        self._origin = origin
        self._saved_at = time.monotonic()
        if not self._path.parent.is_dir():
            raise ValueError(f"checkpoint_path={str(path)!r} is in a folder that does not exist: make it first.")

    def resume(self) -> int:
        """Load the sums if there are any, and say how many batches are in them."""
        if not self._path.exists():
            return 0
        try:
            with safe_open(self._path, "pt") as file:
                stored = file.metadata() or {}
                self._refuse_other_origins(stored)
                for name, part in self._sums.items():
                    keys = [key for key in file.keys() if key.startswith(f"{name}.")]  # noqa: SIM118
                    part.load_state_dict({key.removeprefix(f"{name}."): file.get_tensor(key) for key in keys})
        except SafetensorError as error:
            raise ValueError(
                f"checkpoint_path={str(self._path)!r} is no checkpoint of a diagnosis ({error}): give another path."
            ) from error
        return int(stored["n_batches"])

    def save_if_due(self, n_batches: int) -> None:
        """Save unless the last time was a moment ago; whenever the process dies, the file is a whole one."""
        if time.monotonic() - self._saved_at < _SECONDS_BETWEEN_SAVES:
            return
        states = {name: part.state_dict() for name, part in self._sums.items()}
        tensors = {f"{name}.{key}": total.cpu() for name, state in states.items() for key, total in state.items()}
        save_whole(tensors, self._path, {**self._origin, "n_batches": str(n_batches)})
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """When the sums are no longer needed."""
        self._path.unlink(missing_ok=True)

    def _refuse_other_origins(self, stored: Mapping[str, str]) -> None:
        for name, value in self._origin.items():
            if stored.get(name) != value:
                raise ValueError(
                    f"checkpoint_path={str(self._path)!r} was left by a diagnosis with another {name}, so its sums "
                    "cannot be gone on with: delete the file to start anew, or give another path."
                )


def save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that has its name only once it is complete and on disk."""
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=metadata)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
