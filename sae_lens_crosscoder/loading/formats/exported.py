"""Facts that the authors' layout has no place for: exported beside it, and believed when read back."""

import re
from dataclasses import replace
from typing import Any

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.origin import is_assumed
from sae_lens_crosscoder.crosscoders.partition import Partition
from sae_lens_crosscoder.loading.formats.foreign import Fact, ForeignCrosscoder, ForeignFile
from sae_lens_crosscoder.storage.field_types import matches_type

EXPORT_KEY = "sae_lens_crosscoder"
FILENAME = "trainer_config.json"
"""The file of the authors' trainers, whose unknown keys their tools ignore."""
_FACTS = ("hook_name", "model_names", "dropped_tokens")
_TYPES: dict[str, Any] = {
    "hook_name": str,
    "model_names": list[str],
    "dropped_tokens": str,
    "assumed": list[str],
    "max_norms": list[float],
    "max_norm_ratio": float,
    "n_exclusive": list[int],
}


def exported_settings(crosscoder: InferenceCrosscoder) -> dict[str, Any]:
    """The content of `trainer_config.json`: what the authors' tools read, and what only this package does."""
    metadata, partition = crosscoder.cfg.metadata, crosscoder.cfg.partition
    has_threshold = getattr(crosscoder, "threshold", None) is not None
    trainer: dict[str, Any] = {"dict_class": "BatchTopKCrossCoder" if has_threshold else "CrossCoder"}
    layer = re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", metadata.hook_name or "")
    if layer is not None:
        trainer["layer"] = int(layer.group(1))
    names = [metadata.model_name, metadata.chat_model_name]
    if None not in names:
        trainer["lm_name"] = f"{names[1]}-{names[0]}"
    facts = {
        "hook_name": metadata.hook_name,
        "model_names": None if None in names else names,
        "dropped_tokens": metadata.dropped_tokens,
        "assumed": [name for name in _FACTS if is_assumed(crosscoder, name)],
        "max_norms": metadata.max_norms,
        "max_norm_ratio": metadata.max_norm_ratio,
        "n_exclusive": None if partition is None else [partition.n_base, partition.n_chat],
    }
    return {"trainer": trainer, EXPORT_KEY: {name: value for name, value in facts.items() if value is not None}}


def with_exported_facts(file: ForeignFile, foreign: ForeignCrosscoder) -> ForeignCrosscoder:
    """The crosscoder with the facts that its export has kept, if this package exported it.

    Raises:
        ValueError: for facts of another type, or a partition that the weights contradict.
    """
    file.settings.get("dict_class")  # which says no more than the tensors
    found = {name: file.settings.get(f"{EXPORT_KEY}.{name}") for name in _TYPES}
    for name, value in found.items():
        if value is not None and not matches_type(value, _TYPES[name]):
            raise ValueError(f"The config beside {file.path} has {EXPORT_KEY}.{name}={value!r:.80}, of another type.")
    values: dict[str, Any] = dict(found)
    if values["model_names"] is not None:
        values["model_names"] = tuple(values["model_names"])
        if len(values["model_names"]) != 2:
            raise ValueError(f"The config beside {file.path} has {EXPORT_KEY}.model_names that are not two models.")
    assumed = values["assumed"] or []
    facts = {name: Fact(values[name], name not in assumed) for name in _FACTS if values[name] is not None}
    limits = {name: values[name] for name in ("max_norms", "max_norm_ratio") if values[name] is not None}
    _validate_limits(file, foreign, limits)
    n_exclusive = _exclusive(file, foreign, values["n_exclusive"])
    return replace(foreign, **facts, n_exclusive=n_exclusive, details={**foreign.details, **limits})


def _validate_limits(file: ForeignFile, foreign: ForeignCrosscoder, limits: dict[str, Any]) -> None:
    norms, ratio = limits.get("max_norms", [1.0] * foreign.layout.n_sources), limits.get("max_norm_ratio", 1.0)
    if len(norms) != foreign.layout.n_sources or not all(norm > 0 for norm in (*norms, ratio)):
        raise ValueError(
            f"The config beside {file.path} has {EXPORT_KEY}.max_norms={norms!r:.80} and max_norm_ratio={ratio!r:.40}, "
            "expected a positive number for every model, and one."
        )


def _exclusive(file: ForeignFile, foreign: ForeignCrosscoder, numbers: list[int] | None) -> tuple[int, int]:
    if numbers is None:
        return foreign.n_exclusive
    if len(numbers) != 2 or min(numbers) < 0 or sum(numbers) >= len(foreign.weights.b_enc):
        raise ValueError(f"The config beside {file.path} has {EXPORT_KEY}.n_exclusive={numbers!r:.80}.")
    partition = Partition(*numbers)
    for name, rows in (("W_dec", foreign.weights.W_dec), ("W_enc", foreign.weights.W_enc.T)):
        try:
            partition.validate(rows, foreign.layout, name)
        except ValueError as error:
            raise ValueError(f"{file.path} and its {FILENAME} disagree. {error}") from error
    return partition.n_base, partition.n_chat
