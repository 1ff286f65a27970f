"""Checks of folders and devices before any long work."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import DTYPE_MAP

from sae_lens_crosscoder.models.devices import is_slow_in_bfloat16

_MOST_POSITIONS = 2**24  # SAELens lists them


def validate_writable(folder: str | None) -> None:
    """Raise a ValueError if `folder` cannot be created or written to."""
    if folder is None:
        return
    path = Path(folder).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
    except OSError as error:
        raise ValueError(
            f"Cannot write to {folder!r}: {nearest} is not a writable folder ({error.strerror})."
        ) from error


def validate_no_folder_at(*files: Path) -> None:
    """Raise a ValueError if a folder has the name of a file that will be written."""
    for file in files:
        if file.is_dir():
            raise ValueError(f"Cannot write {str(file)!r}: it is a folder. Remove it, or give another output_path.")


def validate_dtype(name: str, dtype: str) -> None:
    """Raise a ValueError if a field is not the name of a floating-point precision."""
    if dtype not in DTYPE_MAP:
        raise ValueError(f"{name}={dtype!r} is not one of {tuple(DTYPE_MAP)[:4]}.")


def validated_slice(seqpos_slice: Sequence[int | None], context_size: int) -> tuple[int | None, ...]:
    """The slice of positions as a tuple; a ValueError for one without 1 to 3 entries, or of too many positions."""
    if not 1 <= len(seqpos_slice) <= 3:
        raise ValueError(f"seqpos_slice={seqpos_slice} must have 1 to 3 entries: start, stop and step.")
    if context_size > _MOST_POSITIONS:
        raise ValueError(f"context_size={context_size} must be at most {_MOST_POSITIONS}.")
    return tuple(seqpos_slice)


def validate_device(device: str | None) -> None:
    """Raise a ValueError if this torch cannot use the device."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device={device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def stream_ended(n_tokens: int, n_wanted: int) -> ValueError:
    """Error for a stream of activations that ended before the run did."""
    return ValueError(
        f"The activations ended after {n_tokens} tokens, but total_training_samples={n_wanted}. Give a longer (or "
        "repeating) stream, or train on fewer tokens."
    )


def slow_precisions(cfg: Any) -> list[str]:
    """A sentence on each setting of a run that multiplies in bfloat16 on a processor without instructions for it."""
    base_device = cfg.llm_device or cfg.device
    devices: dict[str, list[str]] = {}
    if cfg.model_dtype == "bfloat16" and not cfg.use_cached_activations:
        devices["model_dtype"] = [base_device, cfg.chat_device or base_device]
    if any(sae.dtype == "bfloat16" for sae in cfg.crosscoder_configs.values()):
        devices["sae.dtype"] = [cfg.device]
    return [
        f"{name}='bfloat16' is about 100 times as slow as float32 on this CPU, which has neither AMX nor AVX512-BF16. "
        f"Set {name}='float32', or train on a GPU."
        for name, names in devices.items()
        if any(is_slow_in_bfloat16(device) for device in names)
    ]
