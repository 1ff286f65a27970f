"""Load other people's weight files without running code from them."""

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lens_crosscoder.loading.formats.dedicated_features import PARTITION
from sae_lens_crosscoder.loading.formats.foreign import ForeignFile
from sae_lens_crosscoder.loading.formats.gemma_scope_2 import PART
from sae_lens_crosscoder.loading.formats.recognition import recognise
from sae_lens_crosscoder.loading.formats.settings import Settings
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.tensor_files import load_tensors

WEIGHTS_NAMES = ("model.safetensors", "model_final.pt", "cc_weights.pt", "model.pt")
SHARD_INDEX = "model.safetensors.index.json"
SUFFIXES = (".safetensors", ".pt")


def find_weights(path: Path) -> list[Path]:
    """Find the foreign weight files of one crosscoder at `path`, or in it; empty if there are none.

    Raises:
        ValueError: for files that are not one whole crosscoder, by the name of their layout.
    """
    if path.is_file():
        if path.suffix not in SUFFIXES:
            raise ValueError(f"{path} is not a weights file: expected a name that ends in {' or '.join(SUFFIXES)}.")
        if path in (parts := _parts(path.parent)):
            raise ValueError(
                f"{path} is one of {len(parts)} files of a crosscoder (gemma_scope_2 has one per layer): load its "
                f"folder, {path.parent}."
            )
        return [path]
    if parts := _parts(path):
        return parts
    if (path / SHARD_INDEX).exists():
        return _shards(path)
    known = [path / name for name in WEIGHTS_NAMES if (path / name).exists()]
    files = known or sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
    if len(files) > 1:
        raise ValueError(_about_several(path, files))
    return files


def validate_no_language_model(path: Path) -> None:
    """Raise a ValueError for the folder of a language model, or a file in it, by its config.json."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    fields = load_json(config) if config.exists() else {}
    if isinstance(fields.get("model_type"), str) and "architectures" in fields:
        raise ValueError(
            f"{path} is a language model (model_type={fields['model_type']!r:.40}), not a crosscoder: pass the folder "
            "or Hub id of a crosscoder, and the models by name."
        )


def _parts(folder: Path) -> list[Path]:
    """The files of a Gemma Scope 2 crosscoder, by layer; none may be missing between the first and the last."""
    found = {int(match.group(1)): file for file in folder.iterdir() if (match := PART.fullmatch(file.name))}
    if sorted(found) != list(range(len(found))):
        names = ", ".join(found[n].name for n in sorted(found)[:8])
        raise ValueError(f"{folder} (gemma_scope_2) has the files {names}: others are missing. Download all of them.")
    return [found[n] for n in range(len(found))]


def _shards(folder: Path) -> list[Path]:
    """The files of a safetensors index."""
    index: Any = load_json(folder / SHARD_INDEX).get("weight_map")
    if not isinstance(index, dict) or not index or not all(isinstance(name, str) for name in index.values()):
        raise ValueError(f"{folder / SHARD_INDEX} has no weight_map from tensors to files.")
    names = sorted(set(index.values()))
    bad = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
    if bad:
        raise ValueError(f"{folder} has no file {bad[0]!r:.80}, which {SHARD_INDEX} names: download all files.")
    return [folder / name for name in names]


def _about_several(folder: Path, files: list[Path]) -> str:
    """The message about files that are not one crosscoder."""
    names = ", ".join(file.name for file in files[:8])
    layouts = {recognise(_load_tensors(file)[0], Settings.beside(file), file.name) for file in files}
    layout = layouts.pop() if len(layouts) == 1 else None
    if layout is not None:
        return (
            f"{folder} contains {len(files)} crosscoders of the layout {layout}, {names}: each file is a whole one. "
            f"Load the file of the one you want, such as {files[-1]}."
        )
    return (
        f"{folder} contains several weight files, {names}, that are not the files of one crosscoder in a known layout. "
        f"Known are gemma_scope_2 (params_layer_0.safetensors, ...) and shards with a {SHARD_INDEX}."
    )


def load_foreign_file(paths: list[Path], dtype: torch.dtype) -> ForeignFile:
    """Load the weight files of one crosscoder in at least `dtype` and float32, and the config files beside them."""
    precision = torch.promote_types(dtype, torch.float32)
    are_parts = PART.fullmatch(paths[0].name) is not None
    origin = paths[0] if len(paths) == 1 and not are_parts else paths[0].parent
    settings = Settings.beside(origin)
    tensors: dict[str, Tensor] = {}
    for path in paths:
        loaded, extra = _load_tensors(path)
        settings.add(extra)
        for name, tensor in loaded.items():
            # A module that was compiled when it was saved has prefixed names.
            plain = f"{path.stem}." * are_parts + name.removeprefix("_orig_mod.")
            if plain in tensors:
                raise ValueError(f"{path} has a tensor {name!r:.80} that another file, or another name, has as well.")
            if tensor.numel() == 0:
                raise ValueError(f"{path} has a tensor {name!r:.80} without numbers: download it again.")
            tensors[plain] = tensor.to(precision) if tensor.is_floating_point() else tensor
    return ForeignFile(origin, tensors, settings)


def _load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors of a file, and the plain numbers that a known layout keeps beside them."""
    if path.suffix == ".safetensors":
        return load_tensors(path)[0], {}
    _validate_archive(path)
    try:
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, UnicodeDecodeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamReader" not in str(error):
            raise
        raise ValueError(
            f"{path} contains more than tensors: its pickle would run code, or is damaged. Nothing was run. Ask its "
            "author for a state dict or safetensors."
        ) from error
    tensors, extra = _without_known_extras(content)
    if not isinstance(tensors, dict) or not all(map(_is_plain, tensors, tensors.values())):
        raise ValueError(f"{path} is not a dictionary of tensors: save the module's state_dict().")
    return tensors, extra


def _without_known_extras(content: Any) -> tuple[Any, dict[str, Any]]:
    """Take apart what Llamascopium and dedicated-feature crosscoders put beside the tensors."""
    if not isinstance(content, dict):
        return content, {}
    if content.keys() == {"sae", "version"} and isinstance(content["version"], str):
        return content["sae"], {}
    partition = content.get(PARTITION.removesuffix("."))
    if isinstance(partition, dict) and all(
        isinstance(key, str) and type(value) in (int, float) for key, value in partition.items()
    ):
        tensors = {name: value for name, value in content.items() if value is not partition}
        return tensors, {PARTITION + key: value for key, value in partition.items()}
    return content, {}


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
    except (zipfile.BadZipFile, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error!s:.200}. Download it again.") from error
    if damaged is not None:
        raise ValueError(f"{path} is damaged: checksum mismatch in its record {damaged!r:.80}. Download it again.")


def _is_plain(name: Any, value: Any) -> bool:
    """True for a dense tensor that stores all its numbers; a view may repeat few of them without end."""
    if not isinstance(name, str) or not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not value.is_quantized and value.numel() * value.itemsize <= value.untyped_storage().nbytes()
