"""Reads other people's weight files without running anything that is in them."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.loading.formats.foreign import ForeignFile
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.tensor_files import load_tensors

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
    found = load_json(path)
    trainer: Any = found.get("trainer")
    return {**found, **trainer} if isinstance(trainer, dict) else found


def _read_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    try:
        if zipfile.is_zipfile(path):
            _refuse_damaged_records(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} holds more than tensors: its pickle asks to run code, or is damaged. Nothing was run. Ask its "
            "author for a state dict or safetensors."
        ) from error
    except Exception as error:  # what damaged bytes make torch's readers raise has no end
        raise ValueError(f"{path} cannot be read as weights; it may be cut off. ({error!s:.200})") from error
    if not isinstance(found, dict) or not all(map(_is_plain, found, found.values())):
        raise ValueError(f"{path} is not a dictionary of tensors (a state dict), which is what can be converted.")
    return found


def _refuse_damaged_records(path: Path) -> None:
    """torch does not look at the checksums that its own files hold."""
    with zipfile.ZipFile(path) as records:
        damaged = records.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of its record {damaged!r:.80} is not right")


def _is_plain(name: Any, value: Any) -> bool:
    """Whether it is a tensor that holds the numbers it says; a view may repeat few of them without end."""
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not value.is_quantized and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
