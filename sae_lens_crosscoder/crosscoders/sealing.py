"""Saved crosscoders whose config holds checksums, of itself and of the weights beside it."""

import json
from pathlib import Path
from typing import Any

from sae_lens.util import str_to_dtype
from safetensors.torch import load_file

from sae_lens_crosscoder.storage.checksums import named_fingerprint, seal

CROSSCODER_SHA256 = "crosscoder_sha256"
"""The checksum of a crosscoder's weights in the precision of its config, wherever something is bound to them."""


def seal_folder(weights_path: Path, cfg_path: Path) -> None:
    """Add the checksums to a config that SAELens wrote; its loaders pass them by, `slc.load` checks them."""
    cfg: dict[str, Any] = json.loads(cfg_path.read_text())
    dtype = str_to_dtype(cfg["dtype"])
    weights = {name: tensor.to(dtype) for name, tensor in load_file(weights_path).items()}
    cfg_path.write_text(json.dumps(seal({**cfg, CROSSCODER_SHA256: named_fingerprint(weights)})))
