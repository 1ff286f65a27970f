"""Whether a file is what was written, and what of it may be believed: strict JSON, checksums, names."""

import hashlib
import json
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

SEAL = "sha256"
"""The entry of our JSON files that holds the checksum of all others. Whoever edits one on purpose deletes it."""
_MAX_JSON_BYTES = 2**28
_MAX_JSON_DEPTH = 64
_MAX_SHOWN = 80


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file, with numbers that are finite and every key once.

    Raises:
        ValueError: naming the file, for anything else.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} is too large to be JSON that describes anything: it is damaged or hostile.")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON that can be read, so the file is damaged: {error!s:.200}") from error


def parse_json(text: str) -> dict[str, Any]:
    """The object that strict JSON says; a ValueError for anything else.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: the key 'a' is there twice
    """
    found: Any = json.loads(text, object_pairs_hook=_refuse_twice, parse_constant=_refuse_constant, parse_float=_finite)
    if not isinstance(found, dict):
        raise ValueError(f"it must hold a JSON object, but holds a {type(found).__name__}")
    level: list[Any] = [found]
    for _ in range(_MAX_JSON_DEPTH):
        level = [part for item in level for part in _parts(item)]
    if level:
        raise ValueError(f"it is nested more than {_MAX_JSON_DEPTH} deep")
    json.dumps(found, ensure_ascii=False).encode()  # half a surrogate pair is no text, and could be written nowhere
    return found


def _parts(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def _refuse_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.{_MAX_SHOWN}} is there twice")
    return found


def _refuse_constant(name: str) -> float:
    raise ValueError(f"it holds {name}, which is no JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if value in (float("inf"), -float("inf")):
        raise ValueError(f"it holds the number {text:.{_MAX_SHOWN}}, which is too large")
    return value


def digest(value: Any) -> str:
    """The SHA-256 of what JSON can hold, whatever the order of its keys.

    >>> digest({"a": 1, "b": (2,)}) == digest({"b": [2], "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def seal(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with their checksum, as `read_sealed` checks it."""
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


def read_sealed(path: Path) -> dict[str, Any]:
    """The fields of a JSON file of ours; without a checksum, as before there were any, they are taken as they are."""
    return unseal(read_json(path), path)


def read_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; a ValueError that names it if it is none."""
    try:
        with safe_open(path, "pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, LookupError, AttributeError) as error:  # the last two: a dtype that torch lacks
        raise ValueError(f"{path} cannot be read as safetensors; it may be cut off. ({error!s:.200})") from error


def read_table(path: Path) -> pd.DataFrame:
    """The table in a Parquet file, or in a CSV file whose first column is the index; a ValueError if there is none."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        table = pd.read_csv(path)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows are longer than its first line")
        return table.set_index(table.columns[0])
    except Exception as error:  # what damaged bytes make the readers below raise has no end
        raise ValueError(f"{path} cannot be read as a table, so it is damaged: {error!s:.200}") from error


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """A text that differs when a number, a shape or a dtype does.

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
    """As `fingerprint`, of tensors with names, whatever their order."""
    names = sorted(tensors)
    return digest([names, fingerprint(tensors[name] for name in names)])


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


def listed(names: Iterable[str]) -> str:
    r"""Names from somebody's file on one line, which can neither fill a terminal nor act on it.

    >>> listed(["W_dec", "\x1b[2J"])
    "'\\x1b[2J', W_dec"
    """
    ordered = sorted(names)
    shown = [name if name.isprintable() and len(name) <= _MAX_SHOWN else f"{name!r:.{_MAX_SHOWN}}" for name in ordered]
    more = [f"and {len(shown) - 20} more"] if len(shown) > 20 else []
    return ", ".join(shown[:20] + more)


def refuse_as_folder_name(name: str, what: str) -> None:
    """Raise a ValueError unless `name` names a folder inside another one, wherever it is used.

    >>> refuse_as_folder_name("k=8", "saes")
    >>> refuse_as_folder_name("../k=8", "saes")
    Traceback (most recent call last):
    ValueError: saes has the name '../k=8', which is no plain folder name: use letters, digits and -_=+. within one.
    """
    if name in ("", ".", "..") or len(name) > 100 or not name.isprintable() or set(name) & set('/\\:*?"<>|'):
        raise ValueError(
            f"{what} has the name {name!r:.{_MAX_SHOWN}}, which is no plain folder name: use letters, digits and -_=+. "
            "within one."
        )
