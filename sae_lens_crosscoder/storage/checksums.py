"""SHA-256 checksums of values, tensors and files."""

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.storage.json_files import load_json

SEAL = "sha256"


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


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with their checksum, as `load_sealed` checks it."""
    return {**fields, SEAL: digest(fields)}


def unseal(sealed: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields without their checksum, which must be right if it is there."""
    fields = {name: value for name, value in sealed.items() if name != SEAL}
    if SEAL in sealed and sealed[SEAL] != digest(fields):
        raise ValueError(
            f"{path} is not what was written (SHA-256): it is damaged, or was edited. Get it anew; if it was edited on "
            f"purpose, delete its entry {SEAL!r} as well."
        )
    return fields


def load_sealed(path: Path) -> dict[str, Any]:
    """The fields of a JSON file of ours; without a checksum, as before there were any, they are taken as they are."""
    return unseal(load_json(path), path)


@contextmanager
def blaming(path: Path) -> Generator[None]:
    """Whatever values from a file make the code within raise becomes a ValueError that names the file.

    For values whose types were not checked one by one: what a wrong one raises depends on who meets it first.
    """
    try:
        yield
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError) as error:
        reason = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error!s:.200}"
        raise ValueError(f"{path} holds what it cannot hold. {reason}") from error
