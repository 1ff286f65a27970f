"""Safetensors files: read with an error that names the file, written atomically."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_lens_crosscoder.storage.atomic import atomic_path


def load_tensors(path: Path, device: str = "cpu") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read the tensors and the metadata of a safetensors file; a ValueError names a file that is not one."""
    try:
        with safe_open(path, "pt", device=device) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, LookupError, AttributeError) as error:  # the last two: a dtype that torch lacks
        raise ValueError(f"{path} cannot be read as safetensors; it may be truncated. ({error!s:.200})") from error


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file, complete or not at all."""
    with atomic_path(path) as partial:
        save_file(dict(tensors), partial, metadata=dict(metadata or {}))
