"""Strict JSON: objects only, every key once, finite numbers, limited nesting."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_MAX_JSON_BYTES = 2**28
_MAX_JSON_DEPTH = 64
_MAX_SHOWN = 80


def load_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file.

    Raises:
        ValueError: naming the file, if it does not contain one strict JSON object.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise ValueError(f"{path} is too large for a JSON file of this package: more than {_MAX_JSON_BYTES} bytes.")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error!s:.200}") from error


def parse_json(text: str) -> dict[str, Any]:
    """Parse one strict JSON object.

    >>> parse_json('{"a": [1, 2]}')
    {'a': [1, 2]}
    >>> parse_json('{"a": 1, "a": 2}')
    Traceback (most recent call last):
    ValueError: duplicate key 'a'
    """
    value: Any = json.loads(
        text, object_pairs_hook=_object_from, parse_constant=_reject_constant, parse_float=_finite_float
    )
    if not isinstance(value, dict):
        raise ValueError(f"expected a JSON object, got a {type(value).__name__}")
    level: list[Any] = [value]
    for _ in range(_MAX_JSON_DEPTH):
        level = [part for item in level for part in _parts(item)]
    if level:
        raise ValueError(f"nested more than {_MAX_JSON_DEPTH} levels deep")
    json.dumps(value, ensure_ascii=False).encode()  # raises for half a surrogate pair, which cannot be written
    return value


def _parts(item: Any) -> Iterable[Any]:
    return item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()


def _object_from(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        duplicate = next(name for name in value if names.count(name) > 1)
        raise ValueError(f"duplicate key {duplicate!r:.{_MAX_SHOWN}}")
    return value


def _reject_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite_float(text: str) -> float:
    value = float(text)
    if value in (float("inf"), -float("inf")):
        raise ValueError(f"the number {text:.{_MAX_SHOWN}} is too large")
    return value
