"""Checks of published files that all converters share."""

import math
from typing import Any

from torch import Tensor

from sae_lens_crosscoder.loading.formats.foreign import ForeignFile, ForeignOptions
from sae_lens_crosscoder.storage.names import printable_names


def validate_tensors(
    file: ForeignFile, required: tuple[str, ...], optional: tuple[str, ...] = (), may_be_nan: tuple[str, ...] = ()
) -> None:
    """Raise a ValueError for a tensor that is missing, unknown, of the wrong dtype, or not finite."""
    missing = [name for name in required if name not in file.tensors]
    if missing:
        raise ValueError(
            f"Incomplete crosscoder: {file.path} has no {', '.join(missing)}, only {printable_names(file.tensors)}. "
            "Download the complete file."
        )
    unknown = sorted(set(file.tensors) - {*required, *optional})
    if unknown:
        raise ValueError(
            f"{file.path} has unknown tensors, {printable_names(unknown)}. It is another kind of dictionary, or newer "
            "than this package, and cannot be converted without them."
        )
    for name, tensor in file.tensors.items():
        if not tensor.is_floating_point() and (name in required or tensor.is_complex()):
            raise ValueError(f"{file.path}: {name} has dtype {tensor.dtype}, expected floating-point numbers.")
        allowed = ~tensor.isinf() if name in may_be_nan else tensor.isfinite()
        if not bool(allowed.all()):
            raise ValueError(f"{file.path}: {name} contains NaN or infinite numbers; the file is damaged.")


def validate_shapes(file: ForeignFile, shapes: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Raise a ValueError for the first tensor with a wrong shape: name -> (tensor, expected shape)."""
    for name, (tensor, expected) in shapes.items():
        if tuple(tensor.shape) != expected:
            raise ValueError(
                f"{file.path}: {name} has shape {tuple(tensor.shape)}, expected {expected} from the other tensors. "
                "The file is damaged or mixes two crosscoders."
            )


def scalar(file: ForeignFile, name: str, default: float = math.nan) -> float:
    """Return the number in a tensor of one element; `default` without the tensor."""
    tensor = file.tensors.get(name)
    if tensor is None:
        return default
    if tensor.numel() != 1:
        raise ValueError(f"{file.path}: {name} has shape {tuple(tensor.shape)}, expected one number.")
    return float(tensor)


def validate_pair(file: ForeignFile, n_models: int) -> None:
    """Raise a ValueError unless the file stacks two models at one hook."""
    if n_models != 2:
        raise ValueError(
            f"{file.path} stacks {n_models} activations, expected 2 (base and chat). It may be a crosscoder over "
            "layers of one model, which this layout does not describe."
        )
    for key in ("layers", "hook_points", "hookpoints", "hook_names", "encoder_layers"):
        names: Any = file.settings.get(key) if key in file.settings else None
        if isinstance(names, list) and len(names) > 1 and not (key == "encoder_layers" and names == [0, 1]):
            raise ValueError(
                f"{file.path} is a crosscoder over several hooks, {key}={names!r:.80}, and not over a pair of models. "
                "Its latents have no base and no chat part, so it cannot be converted."
            )


def validate_agreement(file: ForeignFile, expected: dict[str, Any]) -> None:
    """Raise a ValueError for a setting that belongs to other weights: key -> value of the tensors."""
    for key, value in expected.items():
        setting = file.settings.get(key, value)
        if setting != value or isinstance(setting, bool) != isinstance(value, bool):
            raise ValueError(
                f"The config beside {file.path} has {key}={setting!r:.80}, but the tensors have {value}: one of the "
                "two belongs to another crosscoder."
            )


def theta_of(
    file: ForeignFile, found: float | Tensor | None, options: ForeignOptions, assumptions: list[str]
) -> float | Tensor | None:
    """Return the threshold: the caller's, or that of the tensors; None for a ReLU crosscoder.

    Raises:
        ValueError: for a config that says TopK, BatchTopK or JumpReLU beside tensors without a threshold, and a theta
            for a ReLU crosscoder.
    """
    selection = file.settings.selection()
    if selection is None and type(k := file.settings.get("k")) is int:
        selection = f"k={k}"
    if options.theta is not None:
        if selection is None and found is None:
            raise ValueError(
                f"theta={options.theta:g} does not apply to {file.path}: a ReLU crosscoder has no threshold."
            )
        return options.theta
    if found is not None:
        return found
    if selection is None:
        return None
    if options.allow_relu:
        assumptions.append(NO_THRESHOLD)
        return None
    raise ValueError(
        f"{file.path} holds no threshold, although its config says {selection}. Give theta=..., estimated on data, or "
        "allow_relu=True to use every positive latent, which is another crosscoder."
    )


NO_THRESHOLD = (
    "the threshold is unknown, so every positive latent is active (allow_relu=True), many more than in training"
)
