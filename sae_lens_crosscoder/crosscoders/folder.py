"""A saved crosscoder's folder: the checksums beside its config and weights."""

import json
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_WEIGHTS_FILENAME
from sae_lens.util import str_to_dtype
from safetensors.torch import load_file

from sae_lens_crosscoder.storage.atomic import replacing_files
from sae_lens_crosscoder.storage.checksums import CHECKSUMS_FILENAME, FolderChecksums, named_fingerprint

CROSSCODER_SHA256 = "crosscoder_sha256"
"""The name, in `checksums.json` and in results, of the fingerprint of a crosscoder's weights in its config's dtype."""


@contextmanager
def saving_crosscoder(folder: str | Path) -> Generator[Path]:
    """Yield a temporary folder, whose files then replace those of the crosscoder in `folder`.

    The checksums come first and the weights last, so that files of two crosscoders are never taken for one.
    """
    order = {CHECKSUMS_FILENAME: 0, SAE_WEIGHTS_FILENAME: 2}
    with replacing_files(Path(folder), lambda name: order.get(name, 1)) as partial:
        yield partial


def save_with_checksums(save: Callable[[Path], tuple[Path, Path]], folder: str | Path) -> tuple[Path, Path]:
    """Save weights and config by SAELens's method, with their checksums; complete, or the crosscoder before stays."""
    with saving_crosscoder(folder) as partial:
        weights_path, cfg_path = save(partial)
        write_checksums(weights_path, cfg_path)
    return Path(folder, weights_path.name), Path(folder, cfg_path.name)


def write_checksums(weights_path: Path, cfg_path: Path) -> None:
    """Write `checksums.json` beside a crosscoder that SAELens just saved."""
    cfg: dict[str, Any] = json.loads(cfg_path.read_text())
    dtype = str_to_dtype(cfg["dtype"])
    weights = {name: tensor.to(dtype) for name, tensor in load_file(weights_path).items()}
    checksums = FolderChecksums(cfg_path.parent)
    checksums.record(cfg_path.name, weights_path.name)
    checksums.fields[CROSSCODER_SHA256] = named_fingerprint(weights)
    checksums.write()


def crosscoder_digest(folder: str | Path) -> str | None:
    """Return the fingerprint of the crosscoder saved in a folder; None for a folder without checksums."""
    checksums = FolderChecksums(Path(folder))
    value = checksums.fields.get(CROSSCODER_SHA256)
    if not isinstance(value, str | None):
        raise ValueError(f"{checksums.path}: {CROSSCODER_SHA256}={value!r:.80} must be a string: restore the file.")
    return value
