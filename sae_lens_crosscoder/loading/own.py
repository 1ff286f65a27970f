"""Reads crosscoders that this package saved; refuses damaged or mismatched files and other kinds of SAE."""

from pathlib import Path
from typing import Any

from sae_lens.constants import SAE_CFG_FILENAME, SAE_WEIGHTS_FILENAME
from sae_lens.loading.pretrained_sae_loaders import handle_config_defaulting
from sae_lens.registry import SAE_CLASS_REGISTRY
from sae_lens.util import str_to_dtype
from torch import Tensor

from sae_lens_crosscoder.crosscoders.config import validate_known_keys, validate_metadata
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, threshold_dtype
from sae_lens_crosscoder.storage.checksums import CHECKSUMS_FILENAME, FolderChecksums
from sae_lens_crosscoder.storage.field_types import naming_file, validate_field_types
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.names import printable_names
from sae_lens_crosscoder.storage.tensor_files import load_tensors


def load_own(
    folder: Path, device: str, cfg_overrides: dict[str, Any] | None = None
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Load the config and tensors of a saved inference crosscoder, as SAELens's loaders return them.

    A config that was edited loads with a warning. Folders without `checksums.json` load unchecked.

    Raises:
        ValueError: for a training checkpoint, another kind of SAE, unknown config keys, a checksum mismatch, and
            weights that are not finite or do not fit the config.
    """
    cfg_path, weights_path = folder / SAE_CFG_FILENAME, folder / SAE_WEIGHTS_FILENAME
    for path in (cfg_path, weights_path):
        if not path.exists():
            raise ValueError(f"{folder} is not a crosscoder folder: {path.name} is missing.")
    checksums = FolderChecksums(folder)
    cfg = load_json(cfg_path)
    state, _ = load_tensors(weights_path, device)
    if "input_scales" in state:
        raise ValueError(
            f"{folder} is a training checkpoint ({cfg.get('architecture')}). Resume it with resume_from_checkpoint, or "
            "save the inference crosscoder with save_inference_model(path) and load that."
        )
    with naming_file(cfg_path):
        shapes = _shapes_described_by(cfg)
        dtype = str_to_dtype(cfg["dtype"])
    _validate_weights(weights_path, state, shapes)
    _validate_partition(cfg, state)
    remedy = f"Download it again, or delete {CHECKSUMS_FILENAME} if you changed the weights on purpose."
    checksums.validate(SAE_WEIGHTS_FILENAME, remedy)
    checksums.warn_if_edited(SAE_CFG_FILENAME)
    dtypes = {"threshold": threshold_dtype(dtype)}
    state = {name: tensor.to(dtypes.get(name, dtype)) for name, tensor in state.items()}
    # SAELens converts to the precision of the overrides in the end.
    return {**cfg, "device": device, **(cfg_overrides or {})}, state


def _shapes_described_by(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Validate a config field by field, and return the tensor shapes that it describes."""
    architecture = cfg.get("architecture")
    sae_class, cfg_class = SAE_CLASS_REGISTRY.get(str(architecture), (None, None))
    if sae_class is None or cfg_class is None or not issubclass(sae_class, InferenceCrosscoder):
        raise ValueError(f"architecture={architecture!r} is not a crosscoder; SAE.load_from_disk may read it.")
    validate_known_keys(cfg, cfg_class)
    missing = [name for name in ("d_sae", "dtype") if name not in cfg]
    if missing:
        raise ValueError(f"{' and '.join(missing)} is missing.")
    validate_field_types(cfg_class, cfg)
    validate_metadata(cfg.get("metadata"))
    if handle_config_defaulting(cfg) is not cfg:  # SAELens then drops the fields that it does not know
        raise ValueError("metadata.sae_lens_version is missing or below 6, which has no crosscoders.")
    described: Any = cfg_class.from_dict(cfg)
    d_in, d_sae = described.d_in, described.d_sae
    shapes = {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
    return {**shapes, "threshold": (d_sae,)} if architecture == "jumprelu_crosscoder" else shapes


def _validate_weights(path: Path, state: dict[str, Tensor], shapes: dict[str, tuple[int, ...]]) -> None:
    if state.keys() != shapes.keys():
        raise ValueError(
            f"{path} contains the tensors {printable_names(state)}, but {SAE_CFG_FILENAME} beside it describes "
            f"{printable_names(shapes)}: the two files belong to different crosscoders."
        )
    for name, tensor in state.items():
        if tuple(tensor.shape) != shapes[name]:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, but {SAE_CFG_FILENAME} beside it describes "
                f"{shapes[name]}: the two files belong to different crosscoders."
            )
        if not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} has dtype {tensor.dtype} (expected floating point).")
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{path}: {name} contains NaN or infinity: training diverged, or the file is corrupted.")


def _validate_partition(cfg: dict[str, Any], state: dict[str, Tensor]) -> None:
    described: Any = SAE_CLASS_REGISTRY[cfg["architecture"]][1].from_dict(cfg)
    if described.partition is not None:
        described.partition.validate(state["W_dec"], described.layout, "W_dec")
        described.partition.validate(state["W_enc"].T, described.layout, "W_enc")
