"""Reads saved crosscoders, from a folder or the Hub."""

import json
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from sae_lens import SAE
from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.registry import SAE_CLASS_REGISTRY
from safetensors import safe_open

from sae_lens_crosscoder.crosscoders.config import refuse_unknown_keys
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference


def load(source: str | Path, device: str = "cpu", dtype: str | None = None) -> InferenceCrosscoder:
    """The inference crosscoder saved at `source`.

    Args:
        source: a folder with cfg.json and sae_weights.safetensors, or a Hub id `owner/name` with an optional folder
            behind it, `owner/name/folder`.

    Raises:
        ValueError: when there is no crosscoder, it is a training checkpoint, another kind of SAE, or its config has
            keys that this version does not know (nothing is dropped silently).
    """
    folder = Path(source) if Path(source).is_dir() else _download(str(source))
    cfg_path, weights_path = folder / SAE_CFG_FILENAME, folder / SAE_WEIGHTS_FILENAME
    for path in (cfg_path, weights_path):
        if not path.exists():
            raise ValueError(f"{folder} is not a crosscoder folder: it has no {path.name}.")
    cfg: dict[str, Any] = json.loads(cfg_path.read_text())
    architecture = cfg.get("architecture")
    with safe_open(weights_path, framework="pt") as weights:
        if "input_scales" in weights.keys():  # noqa: SIM118  (not a dict)
            raise ValueError(
                f"{folder} is a training checkpoint ({architecture}). Resume it with resume_from_checkpoint, or save "
                "the inference crosscoder with save_inference_model(path) and load that."
            )
    sae_class, cfg_class = SAE_CLASS_REGISTRY.get(str(architecture), (None, None))
    if sae_class is None or cfg_class is None or not issubclass(sae_class, InferenceCrosscoder):
        raise ValueError(f"{folder} holds a {architecture!r}, which is no crosscoder; SAE.load_from_disk may read it.")
    refuse_unknown_keys(cfg, cfg_class)
    return require_inference(SAE.load_from_disk(folder, device=device, dtype=dtype), "load")


def _download(hub_id: str) -> Path:
    parts = hub_id.split("/")
    if len(parts) < 2 or any(part in ("", ".", "..") for part in parts):
        raise ValueError(
            f"{hub_id!r} is neither a folder here nor a Hub id: a Hub id reads 'owner/name' or 'owner/name/folder'."
        )
    folder = "/".join(parts[2:])
    prefix = f"{folder}/" if folder else ""
    wanted = [prefix + SAE_CFG_FILENAME, prefix + SAE_WEIGHTS_FILENAME]
    try:
        root = snapshot_download("/".join(parts[:2]), allow_patterns=wanted)
    except (RepositoryNotFoundError, LocalEntryNotFoundError, HFValidationError) as error:
        raise ValueError(
            f"{hub_id!r} is not a folder here (looked in {Path.cwd()}), and neither the Hub nor its cache has it: "
            "check the spelling, the connection, and your login if the repository is private."
        ) from error
    return Path(root, folder)
