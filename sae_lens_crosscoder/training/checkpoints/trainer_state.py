"""Saves and loads one trainer: SAELens's files for one process, torch.distributed's for several."""

import json
import warnings
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import ACTIVATION_SCALER_CFG_FILENAME, SAE_CFG_FILENAME
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.training.distributed.latent_shards import LATENT_AXIS
from sae_lens_crosscoder.training.trainer import StepTrainer

_SHARDED_FILENAME = ".metadata"  # which torch writes last
_MOMENTS = ("exp_avg", "exp_avg_sq")
_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples", "started_fine_tuning")


def save_trainer(trainer: StepTrainer, folder: Path) -> None:
    """Save a trainer; any number of processes can load what several saved."""
    if trainer.collectives.n_processes == 1:
        trainer.save_checkpoint(checkpoint_name=folder.name, base_path=folder.parent)
        return
    with trainer.collectives.fail_together():
        if trainer.collectives.is_lead:
            _write_config(trainer, folder)
    try:
        save(_state(trainer), checkpoint_id=folder)
    except CheckpointException as error:  # a BaseException
        raise OSError(f"torch could not save the shards in {folder}: {error!s:.200}") from error


def _write_config(trainer: StepTrainer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    cfg = trainer.sae.cfg.to_dict() | {"d_sae": trainer.sae.cfg.d_sae * trainer.collectives.n_latents}
    (folder / SAE_CFG_FILENAME).write_text(json.dumps(cfg))
    if trainer.save_checkpoint_fn is not None:
        trainer.save_checkpoint_fn(checkpoint_path=folder)


def load_trainer(trainer: StepTrainer, folder: Path) -> None:
    """Load a trainer's state from a checkpoint that any number of processes saved."""
    if (folder / _SHARDED_FILENAME).exists():
        _load_sharded(trainer, folder)
    elif trainer.collectives.n_processes > 1:
        raise ValueError(
            f"Checkpoint {folder} was saved by one process, and several processes cannot resume it. Resume it with "
            "one process, or start from its weights with from_pretrained_path."
        )
    else:
        _validate_scaler(folder / ACTIVATION_SCALER_CFG_FILENAME)
        trainer.sae.load_weights_from_checkpoint(folder)
        trainer.load_trainer_state(folder)


def _validate_scaler(path: Path) -> None:
    """Refuse by its name a file that SAELens would read without a check."""
    factor = load_json(path).get("scaling_factor", "missing")
    if factor is not None and (isinstance(factor, bool) or not isinstance(factor, int | float)):
        raise ValueError(
            f"{path}: scaling_factor={factor!r:.80} must be a number or null. Resume from another checkpoint."
        )


def _load_sharded(trainer: StepTrainer, folder: Path) -> None:
    _make_moments(trainer)
    state = _state(trainer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is for one process
        load(state, checkpoint_id=folder)  # in place
    progress = state["progress"]
    for name in _COUNTS:
        setattr(trainer, name, progress[name])
    trainer.activation_scaler.scaling_factor = progress["scaling_factor"]
    for name, scheduler in trainer.coefficient_schedulers.items():
        scheduler.load_state_dict(progress["coefficient_schedulers"][name])
    trainer.follow_own_schedule()


def _state(trainer: StepTrainer) -> dict[str, Any]:
    """State to resume from, under names that do not depend on the shards; tensors are views of the trainer's."""
    tensors: dict[str, Tensor] = dict(trainer.sae.state_dict())
    latent_rows = {name: tensors.pop(name).movedim(axis, 0) for name, axis in LATENT_AXIS.items()}
    for name, weights in trainer.sae.named_parameters():
        adam = trainer.optimizer.state[weights]
        tensors[f"step.{name}"] = adam["step"]
        for moment in _MOMENTS:
            if name in LATENT_AXIS:
                latent_rows[f"{moment}.{name}"] = adam[moment].movedim(LATENT_AXIS[name], 0)
            else:
                tensors[f"{moment}.{name}"] = adam[moment]
    for name in ("act_freq_scores", "n_forward_passes_since_fired"):
        latent_rows[name] = getattr(trainer, name)
    progress = {
        **{name: getattr(trainer, name) for name in _COUNTS},
        "scaling_factor": trainer.activation_scaler.scaling_factor,
        "coefficient_schedulers": {name: one.state_dict() for name, one in trainer.coefficient_schedulers.items()},
    }
    sharded = {name: trainer.collectives.as_sharded(rows) for name, rows in latent_rows.items()}
    return {**tensors, **sharded, "progress": progress}


def _make_moments(trainer: StepTrainer) -> None:
    """Create Adam's moments with a step of zero gradients, which changes no weight."""
    for weights in trainer.sae.parameters():
        weights.grad = torch.zeros_like(weights)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
