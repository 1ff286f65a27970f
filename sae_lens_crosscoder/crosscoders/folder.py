"""A saved crosscoder's folder: the checksums beside its config and weights."""

import json
from pathlib import Path
from typing import Any

from sae_lens.util import str_to_dtype
from safetensors.torch import load_file

from sae_lens_crosscoder.storage.checksums import FolderChecksums, named_fingerprint

CROSSCODER_SHA256 = "crosscoder_sha256"
"""The name, in `checksums.json` and in results, of the fingerprint of a crosscoder's weights in its config's dtype."""


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
