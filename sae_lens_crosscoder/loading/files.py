"""Load other people's weight files without running code from them."""

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
    """Find the foreign weights file at `path`, or in it; None if there is none, an error if there are several."""
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} is not a weights file: expected a name that ends in {' or '.join(SUFFIXES)}.")
        return path
    known = [path / name for name in WEIGHTS_NAMES if (path / name).exists()]
    files = known or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise ValueError(f"{path} contains several weight files, {names}: give the path of one.")
    return files[0] if files else None


def load_foreign_file(path: Path, dtype: torch.dtype) -> ForeignFile:
    """Load a weights file in at least `dtype` and float32, and the JSON files beside it."""
    precision = torch.promote_types(dtype, torch.float32)
    settings: dict[str, Any] = {}
    for name in (*SETTINGS_NAMES, f"{path.stem}_cfg.json"):
        if (path.parent / name).exists():
            settings |= _load_settings(path.parent / name)
    # A module that was compiled when it was saved has prefixed names.
    tensors = {
        name.removeprefix("_orig_mod."): tensor.to(precision) if tensor.is_floating_point() else tensor
        for name, tensor in _load_tensors(path).items()
    }
    return ForeignFile(path, tensors, settings)


def _load_settings(path: Path) -> dict[str, Any]:
    settings = load_json(path)
    trainer: Any = settings.get("trainer")
    return {**settings, **trainer} if isinstance(trainer, dict) else settings


def _load_tensors(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path)[0]
    _validate_archive(path)
    try:
        tensors: Any = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} contains more than tensors: its pickle would run code, or is damaged. Nothing was run. Ask its "
            "author for a state dict or safetensors."
        ) from error
    if not isinstance(tensors, dict) or not all(map(_is_plain, tensors, tensors.values())):
        raise ValueError(f"{path} is not a dictionary of tensors: save the module's state_dict().")
    return tensors


def _validate_archive(path: Path) -> None:
    """Check that a torch file is an archive whose records match their checksums, which torch itself ignores."""
    if not zipfile.is_zipfile(path):
        raise ValueError(
            f"{path} is not a torch archive: it is cut off, or a plain pickle that could run code. Nothing was run. "
            "Download it again, or save it with a current torch."
        )
    try:
        with zipfile.ZipFile(path) as archive:
            if any(record.flag_bits & 1 or record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
                raise zipfile.BadZipFile("its records are encrypted or compressed")
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise ValueError(f"{path} is damaged: {error!s:.200}. Download it again.") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: checksum mismatch in its record {damaged!r:.80}. Download it again.")


def _is_plain(name: Any, value: Any) -> bool:
    """True for a dense tensor that stores all its numbers; a view may repeat few of them without end."""
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not value.is_quantized and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
