"""Sums on disk, from which work that was interrupted goes on as if nothing had happened."""

import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from safetensors.torch import save_file
from torch import Tensor

from sae_lens_crosscoder.storage.integrity import SEAL, digest, named_fingerprint, read_tensors

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
        path: where; nothing, or what the same work left there.
        work: what adds the sums up, in words, such as "diagnosis".
        sums: what to save and load, by name.
        origin: what the sums are of, such as the crosscoder and the data; a file of anything else is refused.
    """

    def __init__(
        self, path: str | Path, work: str, sums: Mapping[str, StreamedSums], origin: Mapping[str, str]
    ) -> None:
        self._path = Path(path)
        self._work = work
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
            tensors, stored = read_tensors(self._path)
        except ValueError as error:
            raise ValueError(f"{self._not_ours}: {error} Give another path.") from error
        self._refuse_other_origins(stored)
        if stored.pop(SEAL, None) != _checksum(tensors, stored):
            raise ValueError(
                f"checkpoint_path={str(self._path)!r} is damaged: it does not hold what was written (SHA-256). Delete "
                "the file to start anew."
            )
        for name, part in self._sums.items():
            of_part = {key: total for key, total in tensors.items() if key.startswith(f"{name}.")}
            part.load_state_dict({key.removeprefix(f"{name}."): total for key, total in of_part.items()})
        return int(stored["n_batches"])

    def save_if_due(self, n_batches: int) -> None:
        """Save unless the last time was a moment ago; whenever the process dies, the file is a whole one."""
        if time.monotonic() - self._saved_at < _SECONDS_BETWEEN_SAVES:
            return
        states = {name: part.state_dict() for name, part in self._sums.items()}
        tensors = {f"{name}.{key}": total.cpu() for name, state in states.items() for key, total in state.items()}
        described = {**self._origin, "work": self._work, "n_batches": str(n_batches)}
        save_whole(tensors, self._path, {**described, SEAL: _checksum(tensors, described)})
        self._saved_at = time.monotonic()

    def remove(self) -> None:
        """When the sums are no longer needed."""
        self._path.unlink(missing_ok=True)

    @property
    def _not_ours(self) -> str:
        return f"checkpoint_path={str(self._path)!r} is no checkpoint of a {self._work}"

    def _refuse_other_origins(self, stored: Mapping[str, str]) -> None:
        if stored.get("work") != self._work:
            raise ValueError(f"{self._not_ours}, but of {stored.get('work', 'something else')}: give another path.")
        for name, value in self._origin.items():
            if stored.get(name) != value:
                raise ValueError(
                    f"checkpoint_path={str(self._path)!r} was left by a {self._work} with another {name}, so its sums "
                    "cannot be gone on with: delete the file to start anew, or give another path."
                )


def _checksum(tensors: Mapping[str, Tensor], described: Mapping[str, str]) -> str:
    return digest([described, named_fingerprint(tensors)])


def save_whole(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file that has its name only once it is complete and on disk."""
    partial = path.with_name(path.name + ".partial")
    save_file(tensors, partial, metadata=metadata)
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(path)
