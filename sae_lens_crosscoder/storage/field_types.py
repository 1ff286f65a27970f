"""Checks the values of configs, and those in JSON files, against the types of the dataclass fields that they fill."""

import dataclasses
import math
import types
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np

_MAX_INT = 2**63


@contextmanager
def naming_file(path: object) -> Generator[None]:
    """Put the file's name in front of a ValueError about the values in it."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def validate_field_types(cls: type, values: Mapping[str, Any]) -> None:
    """Raise a ValueError naming the first field whose JSON value has a wrong type.

    Fields with types that JSON does not have are left to their own class.

    >>> @dataclasses.dataclass
    ... class Config:
    ...     k: int
    >>> validate_field_types(Config, {"k": "8"})
    Traceback (most recent call last):
    ValueError: invalid value: `k='8'` (expected int)
    """
    hints = get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name in values and not matches_type(values[field.name], hints[field.name]):
            expected = getattr(hints[field.name], "__name__", None) or str(hints[field.name])
            if get_args(hints[field.name]):
                expected = str(hints[field.name]).replace("typing.", "")
            finite = ", finite" if "float" in expected else ""
            raise ValueError(f"invalid value: `{field.name}={values[field.name]!r:.80}` (expected {expected}{finite})")


def validate_config(config: Any) -> None:
    """Raise a ValueError naming the first field of a config whose value has a wrong type, or is not finite.

    Numbers of numpy, which JSON cannot hold, become Python's. Options (Literals) are left to the config, whose message
    says what they mean.
    """
    hints = get_type_hints(type(config))
    checked = [field.name for field in dataclasses.fields(config) if not _is_option(hints[field.name])]
    values = {name: getattr(config, name) for name in checked}
    for name, value in values.items():
        if isinstance(value, np.generic):
            values[name] = value.item()
            object.__setattr__(config, name, values[name])  # also on a frozen one
    validate_field_types(type(config), values)


def _is_option(hint: Any) -> bool:
    parts = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    return all(part is type(None) or get_origin(part) is Literal for part in parts)


def validate_minimums(config: object, **minimums: int) -> None:
    """Raise a ValueError naming the first field that is below its smallest value; None passes."""
    for name, minimum in minimums.items():
        value = getattr(config, name)
        if value is not None and value < minimum:
            raise ValueError(f"{name}={value} must be at least {minimum}.")


def matches_type(value: Any, hint: Any) -> bool:
    """True if a JSON value can fill a field of this type; a list fills a tuple, and numbers are finite.

    >>> matches_type([1, 2], tuple[int, ...]), matches_type(True, int), matches_type(None, str | None)
    (True, False, True)
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(matches_type(value, option) for option in args)
    if origin is Literal:
        return any(type(value) is type(option) and value == option for option in args)
    if origin in (list, tuple):
        return isinstance(value, list | tuple) and all(matches_type(part, args[0]) for part in value)
    if origin is dict:
        return isinstance(value, dict) and all(matches_type(part, args[1]) for part in value.values())
    if hint is int:
        return type(value) is int and abs(value) < _MAX_INT
    if hint is float:
        return (type(value) is float and math.isfinite(value)) or matches_type(value, int)
    if hint is type(None):
        return value is None
    if hint in (bool, str, list, tuple, dict):
        return isinstance(value, list | tuple if hint in (list, tuple) else hint)
    return True


def float_or_none(text: str | float | None) -> float | None:
    """Parse a flag that takes a number or `None`; simple_parsing cannot read the latter.

    >>> float_or_none("12"), float_or_none("None")
    (12.0, None)
    """
    return None if text in (None, "None", "none") else float(text)
