"""Configs inside a runner config, built from what `to_dict` returned."""

from typing import Any

from sae_lens import LoggingConfig, TrainingSAEConfig
from sae_lens.registry import SAE_TRAINING_CLASS_REGISTRY

from sae_lens_crosscoder.crosscoders.config import validate_known_keys, validate_metadata
from sae_lens_crosscoder.storage.field_types import validate_field_types


def crosscoder_config(fields: Any) -> TrainingSAEConfig:
    """Build a crosscoder's config with the class of its architecture, which refuses unknown keys."""
    if isinstance(fields, TrainingSAEConfig):
        return fields
    architecture = fields.get("architecture") if isinstance(fields, dict) else fields
    if architecture not in SAE_TRAINING_CLASS_REGISTRY:
        raise ValueError(f"sae: architecture={architecture!r:.80} is not one that can be trained.")
    config_class = SAE_TRAINING_CLASS_REGISTRY[architecture][1]
    validate_known_keys(fields, config_class)
    validate_field_types(config_class, fields)
    if "metadata" in fields:
        validate_metadata(fields["metadata"])
    return config_class.from_dict(fields)


def logging_config(fields: Any) -> LoggingConfig:
    """Build the settings of W&B; an unknown key is an error."""
    if isinstance(fields, LoggingConfig):
        return fields
    if not isinstance(fields, dict):
        raise ValueError(f"logger={fields!r:.80} must be an object of W&B settings.")
    validate_known_keys(fields, LoggingConfig)
    validate_field_types(LoggingConfig, fields)
    return LoggingConfig(**fields)
