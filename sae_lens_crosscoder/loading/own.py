"""Reads crosscoders that this package saved, and nothing that is damaged, mixed up or of another kind."""

from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.util import str_to_dtype
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.sealing import CROSSCODER_SHA256
from sae_lens_crosscoder.storage.checksums import SEAL, blaming, load_sealed, named_fingerprint
from sae_lens_crosscoder.storage.names import printable_names
from sae_lens_crosscoder.storage.tensor_files import load_tensors


def read_own(
    folder: Path, device: str, cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Config and tensors of an inference crosscoder's folder, as SAELens's loaders return them.

    Folders from before there were checksums are read as well, as is a config whose checksum was deleted.

    Raises:
        ValueError: for a training checkpoint, another kind of SAE, keys that this version does not know, a checksum
            that is not right, and weights that are not finite or not those that the config describes.
    """
    cfg_path, weights_path = folder / SAE_CFG_FILENAME, folder / SAE_WEIGHTS_FILENAME
    for path in (cfg_path, weights_path):
        if not path.exists():
            raise ValueError(f"{folder} is not a crosscoder folder: it has no {path.name}.")
    cfg = load_sealed(cfg_path)
    state, _ = load_tensors(weights_path, device)
    if "input_scales" in state:
        raise ValueError(
            f"{folder} is a training checkpoint ({cfg.get('architecture')}). Resume it with resume_from_checkpoint, or "
            "save the inference crosscoder with save_inference_model(path) and load that."
        )
    sha256 = cfg.pop(CROSSCODER_SHA256, None)
    with blaming(cfg_path):
        shapes = _described(folder, cfg)
        dtype = str_to_dtype(cfg["dtype"])
    _require_as_described(weights_path, state, shapes)
    state = {name: tensor.to(dtype) for name, tensor in state.items()}
    if sha256 is not None and named_fingerprint(state) != sha256:
        raise ValueError(
            f"{weights_path} does not hold the weights that were saved with {SAE_CFG_FILENAME} (SHA-256): one of the "
            f"two is damaged or of another crosscoder. Get both anew; if the weights were changed on purpose, delete "
            f"{CROSSCODER_SHA256!r} and {SEAL!r} from {SAE_CFG_FILENAME}."
        )
    # SAELens converts to the precision of the overrides in the end.
    return {**cfg, "device": device, **(cfg_overrides or {})}, state


def _described(folder: Path, cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the tensors that a config asks for, after a check of all that it says."""
    architecture = cfg.get("architecture")
    sae_class, cfg_class = SAE_CLASS_REGISTRY.get(str(architecture), (None, None))
    if sae_class is None or cfg_class is None or not issubclass(sae_class, InferenceCrosscoder):
        raise ValueError(f"{folder} holds a {architecture!r}, which is no crosscoder; SAE.load_from_disk may read it.")
    if handle_config_defaulting(cfg) is not cfg:  # by which SAELens drops whatever it does not know
        raise ValueError("metadata.sae_lens_version is missing or below 6, before which there were no crosscoders.")
    described: Any = cfg_class.from_dict(cfg)
    metadata = described.metadata
    for name in ("model_name", "chat_model_name", "hook_name", "dataset_path"):
        if not isinstance(getattr(metadata, name), str | None):
            raise ValueError(f"metadata.{name} must be a name.")
    if not isinstance(metadata.training_architecture_details, dict | None):
        raise ValueError("metadata.training_architecture_details must hold settings by name.")
    d_in, d_sae = described.d_in, described.d_sae
    if type(d_sae) is not int:
        raise ValueError(f"d_sae={d_sae!r} must be a number of latents.")
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return {**shapes, "threshold": (d_sae,)} if architecture == "jumprelu_crosscoder" else shapes


def _require_as_described(path: Path, state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    if state.keys() != shapes.keys():
        raise ValueError(
            f"{path} contains the tensors {printable_names(state)}, but cfg.json beside it describes "
            f"{printable_names(shapes)}: the two files belong to different crosscoders."
        )
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, but the config beside it describes {shapes[name]}: "
                "the two are not of one crosscoder."
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} holds {tensor.dtype} in place of floating-point numbers.")
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{path}: {name} holds NaN or infinite numbers: training diverged, or the file is damaged."
            )
