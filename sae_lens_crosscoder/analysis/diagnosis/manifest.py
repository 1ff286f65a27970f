"""Provenance of an analysis's results."""

from dataclasses import asdict
from typing import Any

from sae_lens_crosscoder.crosscoders.folder import CROSSCODER_SHA256
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.storage.checksums import named_fingerprint
from sae_lens_crosscoder.storage.versions import package_versions

JITTER, JITTERED = "+jitter=", "jittered"
"""In the name of a model with noise on its weights, and the kind of its null pairs."""


def provenance(crosscoder: InferenceCrosscoder) -> dict[str, Any]:
    """Package versions, the checksum of the weights, and the crosscoder's metadata."""
    metadata, partition = crosscoder.cfg.metadata, crosscoder.cfg.partition
    return {
        "versions": package_versions(),
        CROSSCODER_SHA256: named_fingerprint(crosscoder.state_dict()),
        "architecture": crosscoder.cfg.architecture(),
        "models": trained_models(crosscoder),
        "hook_name": metadata.hook_name,
        **({"null_kind": kind} if (kind := _null_kind(crosscoder)) else {}),
        **({"assumptions": list(metadata.assumptions)} if metadata.assumptions else {}),
        "dataset_path": metadata.dataset_path,
        "seed": metadata.seed,
        "space": _space(crosscoder),
        "score": crosscoder.cfg.score,
        "score_norm": crosscoder.cfg.score_norm,
        "partition": None if partition is None else asdict(partition),
        "training": metadata.training_architecture_details,
    }


def trained_models(crosscoder: InferenceCrosscoder) -> list[str | None]:
    """Names of the models, base first: at least two places, of which a crosscoder of one model fills the first."""
    metadata = crosscoder.cfg.metadata
    if crosscoder.layout.n_models <= 2:
        return [metadata.model_name, metadata.chat_model_name]
    return list(crosscoder.model_names)


def _null_kind(crosscoder: InferenceCrosscoder) -> str | None:
    """Kind of null pair that the crosscoder was trained on, as far as it is known."""
    is_jittered = any(JITTER in (name or "") for name in crosscoder.model_names)
    return crosscoder.cfg.metadata.null_kind or (JITTERED if is_jittered else None)


def _space(crosscoder: InferenceCrosscoder) -> str:
    if crosscoder.cfg.activation_scales is None:
        return "raw"
    return "scaled after training" if crosscoder.cfg.metadata.scales_given_after_training else "trained (scaled)"
