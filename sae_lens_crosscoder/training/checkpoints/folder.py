"""Checkpoint folders: written under a temporary name, renamed when complete, verified by checksums."""

import dataclasses
import json
import os
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from sae_lens_crosscoder.crosscoders.collectives import Collectives
from sae_lens_crosscoder.storage.atomic import PARTIAL_SUFFIX, REPLACED_SUFFIX, replace_folder
from sae_lens_crosscoder.storage.checksums import CHECKSUMS_FILENAME, FolderChecksums, file_sha256, mismatch
from sae_lens_crosscoder.storage.field_types import validate_field_types
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.names import printable_names

CHECKPOINT_FILENAME = "checkpoint.json"
FORMAT_VERSION = 2
_MILLISECOND = 10**6
# Settings that a run may go on with changed: how long, where, and what is written about it.
_MAY_CHANGE = {
    *("training_tokens", "total_training_samples", "tokens_per_buffer"),
    *("device", "llm_device", "chat_device", "act_store_device", "prefetch_llm_batches"),
    *("latent_shards", "wait_for_cache"),
    *("checkpoint_path", "resume_from_checkpoint", "n_checkpoints", "n_checkpoints_kept", "save_final_checkpoint"),
    *("output_path", "metrics_path", "logger", "log_frequency", "verbose", "eval_batch_size_prompts", "n_eval_batches"),
    *("metadata", "sae_lens_version", "sae_lens_training_version"),
}


class CheckpointError(OSError):
    """A checkpoint could not be written; earlier checkpoints are complete."""


@dataclass
class CheckpointManifest:
    """The run that a checkpoint belongs to; the checksums of its files are in `checksums.json` beside it."""

    n_training_tokens: int
    settings: dict[str, Any]
    format_version: int = FORMAT_VERSION

    @classmethod
    def read(cls, folder: Path) -> "CheckpointManifest":
        path = folder / CHECKPOINT_FILENAME
        try:
            fields = load_json(path)
            validate_field_types(cls, fields)
        except (OSError, ValueError) as error:
            raise ValueError(f"incomplete checkpoint {folder}: {path.name} cannot be read ({error})") from None
        if fields.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format_version={fields.get('format_version')}, but this version reads {FORMAT_VERSION}: "
                "resume with the version that wrote it."
            )
        unexpected = fields.keys() ^ {field.name for field in dataclasses.fields(cls)}
        if unexpected:
            raise ValueError(f"{path} has missing or unknown fields: {printable_names(unexpected)}")
        return cls(**fields)


@contextmanager
def new_checkpoint(
    folder: Path, n_training_tokens: int, settings: Mapping[str, Any], collectives: Collectives
) -> Generator[Path]:
    """Yield a folder that all processes write into; it becomes `folder` when it is complete and on disk.

    Another checkpoint of that name is there until then. Raises a CheckpointError when something cannot be written, and
    leaves nothing half-written.
    """
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    try:
        with collectives.fail_together():
            if collectives.is_lead:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)
        with collectives.fail_together():
            yield partial
        with collectives.fail_together():
            if collectives.is_lead:
                _complete(partial, n_training_tokens, settings)
                replace_folder(partial, folder)
    # How torch and safetensors say that a disk is full.
    except (OSError, RuntimeError, SafetensorError) as error:
        if collectives.is_lead:
            shutil.rmtree(partial, ignore_errors=True)
        raise CheckpointError(
            f"The checkpoint {folder} could not be written: {error}. Earlier checkpoints are complete. Free some space "
            f"({_free(folder)} are free) or give another checkpoint_path, and resume from the latest."
        ) from error


def _complete(partial: Path, n_training_tokens: int, settings: Mapping[str, Any]) -> None:
    """Write the manifest and the checksums of all files."""
    manifest = asdict(CheckpointManifest(n_training_tokens, dict(settings)))
    marker = partial / CHECKPOINT_FILENAME
    marker.write_text(json.dumps(manifest, indent=1, default=str))
    # Times order checkpoints, and the clock may have been set back since the last one.
    newest = checkpoints_in(partial.parent)[-1] / CHECKPOINT_FILENAME
    if newest != marker:
        later = newest.stat().st_mtime_ns + _MILLISECOND
        os.utime(marker, ns=(later, later))
    files = sorted(path for path in partial.rglob("*") if path.is_file())
    checksums = FolderChecksums(partial)
    checksums.files = {path.relative_to(partial).as_posix(): file_sha256(path) for path in files}
    checksums.write()


def _free(folder: Path) -> str:
    nearest = next(parent for parent in folder.absolute().parents if parent.exists())
    return f"{shutil.disk_usage(nearest).free / 1e9:.3g} GB"


def checkpoints_in(*runs: Path) -> list[Path]:
    """List the checkpoints in the folders of runs, oldest first, unverified."""
    markers = [marker for run in runs for marker in run.glob(f"*/{CHECKPOINT_FILENAME}")]
    return [marker.parent for marker in sorted(markers, key=lambda marker: marker.stat().st_mtime_ns)]


def remove_all_but(n_kept: int, folder: Path) -> None:
    """Delete a run's older checkpoints, and remains of interrupted writes and deletions."""
    for checkpoint in checkpoints_in(folder)[:-n_kept]:
        if not checkpoint.name.endswith(PARTIAL_SUFFIX):
            checkpoint.rename(checkpoint.with_name(checkpoint.name + PARTIAL_SUFFIX))
    for left in (*folder.glob(f"*{PARTIAL_SUFFIX}"), *folder.glob(f"*{REPLACED_SUFFIX}")):
        shutil.rmtree(left, ignore_errors=True)


def problem_with(checkpoint: Path) -> str | None:
    """Describe why training cannot resume from a checkpoint; None if every file is what was written."""
    try:
        CheckpointManifest.read(checkpoint)
        files = FolderChecksums(checkpoint).files
    except ValueError as error:
        return str(error)
    if CHECKPOINT_FILENAME not in files:
        return f"incomplete checkpoint {checkpoint}: {CHECKSUMS_FILENAME} is missing or does not list its files"
    for name, sha256 in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"incomplete checkpoint {checkpoint}: `{name!r:.80}` is missing"
        if file_sha256(path) != sha256:
            return mismatch(path, "Resume from another checkpoint.")
    return None


def changed_settings(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """List the differences between two runs' settings that prevent resuming.

    >>> changed_settings({"lr": 0.1, "sae": {"k": 8, "device": "cpu"}}, {"lr": 0.1, "sae": {"k": 9, "device": "cuda"}})
    ['sae.k is 8 there and 9 here']
    """
    theirs, ours = _flat(there), _flat(json.loads(json.dumps(here, default=str)))
    return [
        f"{name} is {theirs.get(name)!r} there and {ours.get(name)!r} here"
        for name in sorted(theirs | ours)
        if theirs.get(name) != ours.get(name) and _MAY_CHANGE.isdisjoint(name.split("."))
    ]


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
