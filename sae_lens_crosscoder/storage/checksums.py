"""SHA-256 checksums of values, tensors and files."""

import hashlib
import json
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.storage.atomic import write_text_atomically
from sae_lens_crosscoder.storage.json_files import load_json

CHECKSUMS_FILENAME = "checksums.json"


def digest(value: Any) -> str:
    """Compute the SHA-256 of a JSON value, whatever the order of its keys.

    >>> digest({"a": 1, "b": (2,)}) == digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Compute a SHA-256 that changes with any number, shape or dtype.

    >>> zeros, ones = torch.zeros(2), torch.ones(2)
    >>> fingerprint([zeros]) == fingerprint([0 * ones]), fingerprint([zeros]) == fingerprint([ones])
    (True, False)
    """
    sha = hashlib.sha256()
    for tensor in tensors:
        sha.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        sha.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def named_fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """Compute the fingerprint of named tensors, whatever their order."""
    names = sorted(tensors)
    return digest([names, fingerprint(tensors[name] for name in names)])


def file_sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def validate_checksum(path: Path, expected: str, remedy: str) -> None:
    """Raise a ValueError if a file's SHA-256 is not the expected one."""
    if file_sha256(path) != expected:
        raise ValueError(mismatch(path, remedy))


def validate_checksums(folder: Path, files: Mapping[str, str], remedy: str) -> None:
    """Raise a ValueError if a file of a folder, by its name, is missing or has another SHA-256."""
    _validate_inside(folder, files)
    for name, expected in files.items():
        if not (folder / name).is_file():
            raise ValueError(f"{folder / name} is missing. {remedy}")
        validate_checksum(folder / name, expected, remedy)


def _validate_inside(folder: Path, names: Iterable[str]) -> None:
    """Raise a ValueError if a name that was read from a file leads out of its folder."""
    for name in names:
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise ValueError(f"{folder} lists checksums of {name!r:.80}, which is outside it: restore the folder.")


def mismatch(path: Path, remedy: str) -> str:
    """Format the error for a file whose content differs from what was written."""
    return f"{path}: checksum mismatch: the file was corrupted or edited. {remedy}"


class FolderChecksums:
    """The SHA-256 of files in a folder, by name, stored in its `checksums.json`; configs carry no checksum inside.

    Raises:
        ValueError: if `checksums.json` exists but is not what this package writes.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / CHECKSUMS_FILENAME
        self.fields: dict[str, Any] = load_json(self.path) if self.path.exists() else {}
        files: Any = self.fields.get("files", {})
        if not isinstance(files, dict) or not all(isinstance(value, str) for value in files.values()):
            raise ValueError(f"{self.path}: `files` must map file names to SHA-256 checksums: restore the file.")
        _validate_inside(folder, files)
        self.files: dict[str, str] = files

    def record(self, *names: str) -> None:
        """Add the checksums of files that were just written."""
        self.files |= {name: file_sha256(self.path.parent / name) for name in names}

    def write(self) -> None:
        """Write `checksums.json`, complete or not at all."""
        write_text_atomically(json.dumps({**self.fields, "files": self.files}, indent=1), self.path)

    def warn_if_edited(self, name: str) -> None:
        """Warn, naming the file, if a config differs from what was recorded; an edited config is used as it is."""
        path = self.path.parent / name
        if name in self.files and file_sha256(path) != self.files[name]:
            warnings.warn(
                f"{path} was edited after it was written (checksum mismatch with {CHECKSUMS_FILENAME}); it is used as "
                "it is now.",
                stacklevel=3,
            )

    def validate(self, name: str, remedy: str) -> None:
        """Raise a ValueError if a file differs from what was recorded; files without a record pass."""
        if name in self.files:
            validate_checksum(self.path.parent / name, self.files[name], remedy)
