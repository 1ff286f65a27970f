"""Where a run goes on from, and what happens when it is interrupted."""

import os
import signal
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.constants import SAE_CFG_FILENAME, TRAINER_STATE_FILENAME
from sae_lens.training._interruption import interrupt_callback

from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.training.latent_shards import SHARDED_FILENAME


def refuse_unwritable(folder: str | None) -> None:
    """Raise a ValueError if `folder` is there but no folder, or cannot be made where it should be."""
    if folder is None:
        return
    path = Path(folder).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        raise ValueError(f"Cannot write to {folder!r}: {nearest} is not a folder that may be written to.")


def refuse_missing_device(device: str | None) -> None:
    """Raise a ValueError if this torch cannot use the device."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device={device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def read_training_crosscoder(folder: Path, cfg: TrainingSAEConfig) -> TrainingCrosscoder:
    """The weights that training goes on from; they must be of the configured kind and size."""
    if not (folder / SAE_CFG_FILENAME).exists():
        raise ValueError(f"from_pretrained_path: {folder} has no {SAE_CFG_FILENAME}; give a training checkpoint.")
    stored: Any = TrainingSAE.load_from_disk(folder, device=cfg.device)
    found, wanted = stored.cfg, cfg
    for key in ("d_models", "d_sae", "score"):
        if (type(found), getattr(found, key)) != (type(wanted), getattr(wanted, key)):
            raise ValueError(
                f"from_pretrained_path: {folder} holds a {found.architecture()} with {key}={getattr(found, key)}, but "
                f"the config asks for a {wanted.architecture()} with {key}={getattr(wanted, key)}."
            )
    crosscoder: Any = type(stored)(cfg)  # so that what the config says about training holds from here on
    crosscoder.cfg.activation_scales = found.activation_scales
    crosscoder.load_state_dict(stored.state_dict())
    return crosscoder


def find_checkpoint(requested: str, checkpoint_path: str | None) -> Path:
    """The checkpoint to resume from; `latest` is the newest one below the parent of `checkpoint_path`.

    The parent, because SAELens appends a new random id to `checkpoint_path` in every run.
    """
    if requested != "latest":
        if not Path(requested).is_dir():
            raise ValueError(f"There is no checkpoint folder {requested!r}: give one, or 'latest'.")
        return Path(requested)
    if checkpoint_path is None:
        raise ValueError("resume_from_checkpoint='latest' needs checkpoint_path, to know where to look.")
    parent = Path(checkpoint_path).parent
    names = (TRAINER_STATE_FILENAME, SHARDED_FILENAME)
    states = [state for name in names for state in parent.glob(f"*/*/**/{name}")]
    if not states:
        raise ValueError(f"There is no checkpoint below {str(parent)!r} to resume from: start without resuming.")
    newest = max(states, key=lambda state: state.stat().st_mtime)
    run, tokens = newest.relative_to(parent).parts[:2]
    return parent / run / tokens


@contextmanager
def signals_interrupt(handler: Callable[[Any, Any], None] = interrupt_callback) -> Generator[None]:
    """Make SIGINT and SIGTERM raise, so that the trainer can save a checkpoint before the process ends."""
    try:
        previous = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, where signals cannot be caught
        previous = {}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)
