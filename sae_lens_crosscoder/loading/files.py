"""Reads other people's weight files without running anything that is in them."""

import json
import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_lens_crosscoder.loading.foreign import ForeignFile

WEIGHTS_NAMES = ("model.safetensors", "model_final.pt", "cc_weights.pt")
SETTINGS_NAMES = ("config.json", "trainer_config.json", "cfg.json")
SUFFIXES = (".safetensors", ".pt")


def find_weights(path: Path) -> Path | None:
    """The one foreign weights file that `path` is or holds; None if there is none, an error if there are several."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} is not a weights file: those end in {' or '.join(SUFFIXES)}.")
        return path
    known = [path / name for name in WEIGHTS_NAMES if (path / name).exists()]
    found = known or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(found) > 1:
        raise ValueError(
            f"{path} holds several weight files, {', '.join(file.name for file in found)}: give the path of one."
        )
    return found[0] if found else None


def read_foreign_file(path: Path, dtype: torch.dtype) -> ForeignFile:
    """A weights file, its numbers in at least `dtype` and float32, and the JSON files beside it."""
    precision = torch.promote_types(dtype, torch.float32)
    settings: dict[str, Any] = {}
    for name in (*SETTINGS_NAMES, f"{path.stem}_cfg.json"):
        if (path.parent / name).exists():
            settings |= _read_settings(path.parent / name)
    # Names of a module that was compiled when it was saved.
    tensors = {
        name.removeprefix("_orig_mod."): tensor.to(precision) if tensor.is_floating_point() else tensor
        for name, tensor in _read_tensors(path).items()
    }
    return ForeignFile(path, tensors, settings)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(path.read_text())
    except ValueError as error:  # also what is no text
        raise ValueError(f"{path} is not JSON, so the file is damaged: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} must hold a JSON object, but holds a {type(found).__name__}.")
    trainer: Any = found.get("trainer")
    return {**found, **trainer} if isinstance(trainer, dict) else found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors: its pickle asks to run code, or is damaged. Nothing was run. Ask its "
            "author for a state dict or safetensors."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as weights; it may be cut off. ({error})") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ValueError(f"{path} is not a dictionary of tensors (a state dict), which is what can be converted.")
    return found
