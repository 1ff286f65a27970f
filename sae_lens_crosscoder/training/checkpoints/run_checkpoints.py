"""Saves and resumes a run: one checkpoint for all its crosscoders, data and random generators."""

import logging
import random
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.activations.training_batches import TrainingBatches
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.storage.notes import write_note
from sae_lens_crosscoder.training.checkpoints.folder import (
    CheckpointManifest,
    changed_settings,
    checkpoints_in,
    new_checkpoint,
    problem_with,
    remove_all_but,
)
from sae_lens_crosscoder.training.checkpoints.trainer_state import load_trainer, save_trainer
from sae_lens_crosscoder.training.trainer import StepTrainer

RUN_STATE_FILENAME = "run_state_{rank}.pt"
logger = logging.getLogger(__name__)


class RunCheckpoints:
    """Saves and resumes a run; on a CPU, the resumed run equals the uninterrupted one to the bit.

    A checkpoint is a folder `<checkpoint_path>/<tokens>` with a file `run_state_<rank>.pt` of every process (activation
    buffer, position in the data, random generators) and the state of every crosscoder's trainer. A run with another
    number of processes resumes with the same weights and moments, but only near the position in the data and with empty
    buffers.

    Args:
        settings: settings that identify the run; a checkpoint with other settings is refused.
    """

    def __init__(
        self, trainers: Mapping[str, StepTrainer], batches: TrainingBatches, settings: Mapping[str, Any]
    ) -> None:
        self._trainers, self._batches, self._settings = trainers, batches, settings
        lead = next(iter(trainers.values()))
        self._cfg, self._collectives = lead.cfg, lead.collectives
        self._newest: Path | None = None

    @property
    def n_tokens(self) -> int:
        """Tokens that every crosscoder was trained on."""
        return min(trainer.n_training_samples for trainer in self._trainers.values())

    def save(self, prefix: str = "", keep_older: bool = False) -> Path | None:
        """Write a checkpoint and remove those that are older than the config wants kept; None without a path."""
        if self._cfg.checkpoint_path is None:
            return None
        run = Path(self._cfg.checkpoint_path)
        folder = run / f"{prefix}{self.n_tokens}"
        if folder == self._newest:  # already saved
            return folder
        with new_checkpoint(folder, self.n_tokens, self._settings, self._collectives) as partial:
            for name, trainer in self._trainers.items():
                save_trainer(trainer, partial / name)
            torch.save(self._state(), partial / RUN_STATE_FILENAME.format(rank=self._collectives.rank))
        self._newest = folder
        if self._cfg.n_checkpoints_kept is not None and not keep_older and self._collectives.is_lead:
            remove_all_but(self._cfg.n_checkpoints_kept, run)
        return folder

    def save_because_of(self, error: BaseException) -> None:
        """Save the state before an error, and add the folder to the error's notes; older checkpoints stay.

        Nothing is saved if the other processes have continued or ended.
        """
        if all(trainer.n_training_steps == 0 for trainer in self._trainers.values()):
            return
        if not self._collectives.can_communicate_after(error):
            return
        try:
            folder = self.save(keep_older=True)
        except OSError as unsaved:
            error.add_note(str(unsaved))
            return
        if folder is None:
            error.add_note("Nothing was saved, because checkpoint_path is None.")
        else:
            error.add_note(
                f"All {self.n_tokens} tokens of training are saved in {folder}: resume with "
                "resume_from_checkpoint='latest'."
            )

    def resume(self) -> None:
        """Load the checkpoint that the config names, if any."""
        if self._cfg.resume_from_checkpoint is None:
            return
        run = self._cfg.checkpoint_path
        folder = find_checkpoint(self._cfg.resume_from_checkpoint, None if run is None else [Path(run)], self._settings)
        state = _read_state(folder, 0)
        n_processes = state["n_processes"]
        if n_processes == self._collectives.n_processes:
            state = _read_state(folder, self._collectives.rank)
        for name, trainer in self._trainers.items():
            with _naming_unreadable(folder / name):
                load_trainer(trainer, folder / name)
            trainer.sae.load_carried_state(state["crosscoders"][name]["carried"])
            trainer.metrics_log.start_from(state["crosscoders"][name]["metrics"])
        if self._collectives.is_lead:
            lead = next(iter(self._trainers.values()))
            write_note(
                f"Resuming from {folder}: {self.n_tokens} of {self._cfg.total_training_samples} tokens are trained "
                f"(step {lead.n_training_steps} of {self._cfg.total_training_steps}).",
            )
        if n_processes == self._collectives.n_processes:
            self._batches.load_state_dict(state["batches"])
        else:
            self._batches.fast_forward(state["batches"], n_processes / self._collectives.n_processes)
        _set_random_state(state["random"])

    def _state(self) -> dict[str, Any]:
        crosscoders = {
            name: {"carried": trainer.sae.carried_state(), "metrics": trainer.metrics_log.rows}
            for name, trainer in self._trainers.items()
        }
        return {
            "n_processes": self._collectives.n_processes,
            "crosscoders": crosscoders,
            "batches": self._batches.state_dict(),
            "random": _random_state(),
        }


def _read_state(folder: Path, rank: int) -> dict[str, Any]:
    path = folder / RUN_STATE_FILENAME.format(rank=rank)
    with _naming_unreadable(path):
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


@contextmanager
def _naming_unreadable(path: Path) -> Generator[None]:
    """Turn torch's error about a file with other objects than tensors, and its unsafe advice, into ours."""
    try:
        yield
    except UnpicklingError as error:
        raise ValueError(
            f"{path} contains Python objects that a checkpoint of this package does not have, and loading them could "
            "run code. Resume from a checkpoint that you made."
        ) from error


def find_checkpoint(requested: str, runs: list[Path] | None, settings: Mapping[str, Any]) -> Path:
    """Return the requested checkpoint, or for `latest` the newest complete one with these settings.

    Args:
        runs: the folders of runs, in which `latest` looks for checkpoints.

    Raises:
        ValueError: for an incomplete checkpoint, or one with other settings; the message names them.
    """
    if requested != "latest":
        folder = Path(requested)
        problem = f"there is no folder {requested!r}" if not folder.is_dir() else problem_with(folder)
        if problem is not None:
            raise ValueError(f"resume_from_checkpoint: {problem}. Give a complete checkpoint, or 'latest'.")
        changed = changed_settings(CheckpointManifest.read(folder).settings, settings)
        if changed:
            raise ValueError(
                f"{folder} is a checkpoint of another run: {'; '.join(changed)}. Resume with the settings it was made "
                "with, or start a new run from its weights alone with from_pretrained_path."
            )
        return folder
    if runs is None:
        raise ValueError("resume_from_checkpoint='latest' needs checkpoint_path, to know where to look.")
    others: list[str] = []
    for folder in reversed(checkpoints_in(*runs)):
        problem = problem_with(folder)
        if problem is not None:
            logger.warning("Skipping a checkpoint: %s.", problem)
            continue
        changed = changed_settings(CheckpointManifest.read(folder).settings, settings)
        if not changed:
            return folder
        others.append(f"{folder} ({'; '.join(changed)})")
    hint = f" There is one of another run: {others[0]}." if others else ""
    raise ValueError(
        f"There is no complete checkpoint of this run to resume from (looked in {len(runs)} folders at "
        f"checkpoint_path): start without resuming.{hint}"
    )


def load_training_crosscoder(folder: Path, cfg: TrainingSAEConfig) -> TrainingCrosscoder:
    """Load the weights to start from, which must have the configured architecture and size."""
    if not (folder / SAE_CFG_FILENAME).exists():
        raise ValueError(f"from_pretrained_path: {folder} has no {SAE_CFG_FILENAME}; give a training checkpoint.")
    stored: Any = TrainingSAE.load_from_disk(folder, device=cfg.device)
    found, wanted = stored.cfg, cfg
    for key in ("d_models", "d_sae", "score"):
        if (type(found), getattr(found, key)) != (type(wanted), getattr(wanted, key)):
            raise ValueError(
                f"from_pretrained_path: {folder} contains a {found.architecture()} with {key}={getattr(found, key)}, "
                f"but the config asks for a {wanted.architecture()} with {key}={getattr(wanted, key)}."
            )
    crosscoder: Any = type(stored)(cfg)  # with the training settings of the new config
    crosscoder.cfg.activation_scales = found.activation_scales
    crosscoder.load_state_dict(stored.state_dict())
    return crosscoder


def _random_state() -> dict[str, Any]:
    """States of the global generators, in types that `torch.load` reads with weights_only=True."""
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (the hosts use the global generator)
    return {
        "python": random.getstate(),
        "numpy": (kind, np.asarray(keys).tolist(), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def _set_random_state(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    np.random.set_state(state["numpy"])  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])
