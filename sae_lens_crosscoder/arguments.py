"""Arguments of public functions, compared with their annotations before anything runs."""

import inspect
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Final, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

import numpy as np
from jaxtyping import AbstractArray, jaxtyped
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")

_ADVICE = {
    "EvalData": "Pass EvalData(pair=..., tokens=...), EvalData(activations=...) or runner.held_out_data().",
    "HookedModelPair": "Pass HookedModelPair(base, chat), or HookedModelPair.from_pretrained(base, chat).",
    "DataFrame": "Pass a table, such as the latents of diagnose.",
    "Diagnosis": "Pass the result of diagnose, or Diagnosis.load(folder).",
    "Responses": "Pass the result of generate_responses or given_responses.",
}
"""The way out, by the name of the class that was expected."""
_LEFT_TO_FUNCTIONS: Final = ("InferenceCrosscoder",)
"""Classes whose own check says more than their name: `validate_inference`."""
_WORDS: Final[dict[Any, str]] = {
    **{NoneType: "None", str: "a text", int: "an integer", float: "a number", bool: "True or False", Path: "a path"},
    **{Sequence: "a list", Iterable: "an iterable", Mapping: "a dictionary", Callable: "a function"},
}
_NUMBERS = {"Float": "floating-point numbers", "Int": "integers", "Bool": "booleans", "Shaped": "numbers"}


def validate_arguments(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Make a function refuse arguments that its annotations do not describe, by a ValueError that names the argument.

    Tensors are compared in kind of number, rank and shape, where axes of one name have one size. Of containers only the
    class is compared. Options (Literals) are left to the function, whose message says what they mean.

    >>> import torch
    >>> from jaxtyping import Int
    >>> @validate_arguments
    ... def n_prompts(tokens: Int[Tensor, "prompt pos"]) -> int:
    ...     return len(tokens)
    >>> n_prompts(torch.zeros(3))
    Traceback (most recent call last):
    ValueError: tokens has shape (3,) and dtype torch.float32, expected integers of shape (prompt, pos).
    """
    signature = inspect.signature(function)

    @wraps(function)
    def validated(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given, hints = signature.bind(*args, **kwargs).arguments, _hints(function)
        with jaxtyped("context"):  # in which axes of one name have one size
            wrong = next((name for name in given if name in hints and not _accepts(hints[name], given[name])), None)
        if wrong is not None:
            raise ValueError(_message(wrong, hints[wrong], given))
        return function(*args, **kwargs)

    return validated


def validate_width(name: str, activations: Tensor, width: int) -> None:
    """Raise a ValueError that names an argument whose last axis has another size."""
    if activations.shape[-1] != width:
        raise ValueError(f"{name} has width {activations.shape[-1]}, expected {width}.")


@cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations of the parameters that hold one value each."""
    innermost = inspect.unwrap(function)
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(innermost).parameters.values()
    return {each.name: each.annotation for each in parameters if each.kind not in variadic}


def _message(name: str, hint: Any, given: Mapping[str, Any]) -> str:
    value = given[name]
    if _accepts(hint, value):  # alone
        shapes = [f"{other} {tuple(given[other].shape)}" for other in given if isinstance(given[other], Tensor)]
        return f"{name} has shape {tuple(value.shape)}, which does not fit the other arguments: {', '.join(shapes)}."
    return f"{name} {_described(value)}, expected {_expected(hint)}. {_advice(hint)}".strip()


def _accepts(hint: Any, value: Any) -> bool:
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return any(_accepts(option, value) for option in get_args(hint))
    if origin is not None and origin is not Literal:
        return _is_container(origin, value)
    if hint in (None, NoneType):
        return value is None
    if hint is Any:
        return True
    if hint in (int, float):
        kind = numbers.Integral if hint is int else numbers.Real
        return isinstance(value, kind) and not isinstance(value, bool | np.bool_)
    if hint is bool:
        return isinstance(value, bool | np.bool_)
    if not isinstance(hint, type) or hint is inspect.Parameter.empty or hint.__name__ in _LEFT_TO_FUNCTIONS:
        return True
    return isinstance(value, hint) or getattr(hint, "_is_protocol", False)


def _is_container(origin: Any, value: Any) -> bool:
    if origin is Sequence:  # anything with a length and an order, but a text or a table is one thing
        has_items = hasattr(value, "__len__") and hasattr(value, "__iter__")
        is_table = getattr(value, "ndim", 1) != 1
        return has_items and not is_table and not isinstance(value, str | bytes | Mapping)
    if origin is Iterable:
        return hasattr(value, "__iter__") and not isinstance(value, str | bytes | Mapping)
    return callable(value) if origin is Callable else isinstance(value, origin)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"has shape {tuple(value.shape)} and dtype {value.dtype}"
    if value is None or isinstance(value, bool | numbers.Number | str):
        return f"is {value!r:.60}"
    name = type(value).__name__
    return f"is {'an' if name[0] in 'AEIOU' else 'a'} {name}"


def _expected(hint: Any) -> str:
    *first, last = dict.fromkeys(_named(option) for option in _options(hint))
    return f"{', '.join(first)} or {last}" if first else last


def _named(hint: Any) -> str:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        kind, axes = hint.__name__.partition("[")[0], hint.dim_str.split()  # pyright: ignore[reportAttributeAccessIssue]
        shape = ", ".join(axes) + ("," if len(axes) == 1 else "")
        return f"{_NUMBERS.get(kind, kind)} of shape ({shape})"
    kind = get_origin(hint) or hint
    if kind in _WORDS:
        return _WORDS[kind]
    name = getattr(kind, "__name__", None) or str(kind)
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


def _options(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def _advice(hint: Any) -> str:
    names = [getattr(option, "__name__", "") for option in _options(hint)]
    return next((_ADVICE[name] for name in names if name in _ADVICE), "")
