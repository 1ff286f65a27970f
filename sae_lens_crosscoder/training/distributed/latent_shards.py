"""A crosscoder whose latents several processes hold: how it is cut, put together, saved and read."""

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from sae_lens.constants import SAE_CFG_FILENAME
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from typing_extensions import override

from sae_lens_crosscoder.training.trainer import CrosscoderTrainer

# Where the latents lie in those weights that have some; the others every process has.
LATENT_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0}
_SHARDED_FILENAME = ".metadata"  # which torch writes last
_MOMENTS = ("exp_avg", "exp_avg_sq")


def part_of(whole: Any, shard: int, n_shards: int) -> Any:
    """A crosscoder of an n-th of another's latents, in order; `k` stays that of all."""
    if whole.cfg.d_sae % n_shards:
        raise ValueError(f"d_sae={whole.cfg.d_sae} latents cannot be divided evenly by latent_shards={n_shards}.")
    if whole.cfg.training_step == "dense":
        raise ValueError("training_step='dense' is the reference, for one process: several need 'sparse'.")
    weights = whole.state_dict()
    parts = {name: weights[name].chunk(n_shards, dim=axis)[shard] for name, axis in LATENT_AXIS.items()}
    part = _with_latents(whole, whole.cfg.d_sae // n_shards, whole.cfg.device)
    part.load_state_dict(weights | parts)
    return part.to(whole.device)


def whole_of(part: Any, collected: Callable[[Tensor], list[Tensor]], n_shards: int) -> Any:
    """The inverse, on the CPU; `collected` brings a tensor's parts together, or none where there is nothing to do.

    Returns:
        None for `n_shards=0`.
    """
    weights = {name: tensor.cpu() for name, tensor in part.state_dict().items()}
    parts = {name: collected(weights[name].contiguous()) for name in LATENT_AXIS}
    if n_shards == 0:
        return None
    whole = _with_latents(part, part.cfg.d_sae * n_shards, "cpu")
    whole.load_state_dict(weights | {name: torch.cat(parts[name], dim=axis) for name, axis in LATENT_AXIS.items()})
    return whole


def _with_latents(crosscoder: Any, d_sae: int, device: str) -> Any:
    cfg = copy.deepcopy(crosscoder.cfg)
    cfg.d_sae, cfg.device = d_sae, device  # not by a constructor, which would compare k with a part's latents
    return type(crosscoder)(cfg)


class ShardedTrainer(CrosscoderTrainer):
    """Trains one process's part; its checkpoints are `torch.distributed`'s, which any number of processes can read."""

    @override
    def save_checkpoint(
        self, checkpoint_name: str, base_path: Path | str | None = None, wandb_aliases: list[str] | None = None
    ) -> None:
        folder = Path(base_path or self.cfg.checkpoint_path or "", checkpoint_name)
        with self.ranks.together():
            if self.ranks.is_lead:
                self._describe(folder)
        try:
            save(_state(self), checkpoint_id=folder)
        except CheckpointException as error:  # which is no Exception
            raise OSError(f"torch could not save the parts of {folder}: {error!s:.200}") from error

    def _describe(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        cfg = self.sae.cfg.to_dict() | {"d_sae": self.sae.cfg.d_sae * self.ranks.n_latents}
        (folder / SAE_CFG_FILENAME).write_text(json.dumps(cfg))
        if self.save_checkpoint_fn is not None:
            self.save_checkpoint_fn(checkpoint_path=folder)

    @override
    def set_final_sae_metadata(self) -> None:
        """SAELens's, over all latents."""
        super().set_final_sae_metadata()
        if self.n_frac_active_samples > 0:
            metadata = self.sae.cfg.metadata
            metadata.l0 = self.ranks.summed(self.feature_sparsity.sum(), "latents").item()
            metadata.num_dead_features = self.ranks.total(int(self.dead_neurons.sum()), "latents")


def load_checkpoint(trainer: CrosscoderTrainer, folder: Path) -> None:
    """Have a trainer go on from a checkpoint that any number of processes saved."""
    if (folder / _SHARDED_FILENAME).exists():
        _load_sharded(trainer, folder)
    elif trainer.ranks.n > 1:
        raise ValueError(
            f"Checkpoint {folder} was saved by one process, and several cannot go on from it: resume it with one, or "
            "start from its weights with from_pretrained_path."
        )
    else:
        trainer.sae.load_weights_from_checkpoint(folder)
        trainer.load_trainer_state(folder)


def _load_sharded(trainer: CrosscoderTrainer, folder: Path) -> None:
    _make_moments(trainer)
    state = _state(trainer)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as it is for one process
        load(state, checkpoint_id=folder)  # into the tensors, which are the trainer's own
    progress = state["progress"]
    for name in _COUNTS:
        setattr(trainer, name, progress[name])
    trainer.activation_scaler.scaling_factor = progress["scaling_factor"]
    for name, scheduler in trainer.coefficient_schedulers.items():
        scheduler.load_state_dict(progress["coefficient_schedulers"][name])
    trainer.follow_own_schedule()


_COUNTS = ("n_training_samples", "n_training_steps", "n_frac_active_samples", "started_fine_tuning")


def _state(trainer: CrosscoderTrainer) -> dict[str, Any]:
    """All that training goes on from, by names that do not depend on who holds what; tensors are the trainer's own."""
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
    sharded = {name: trainer.ranks.sharded(rows) for name, rows in latent_rows.items()}
    return {**tensors, **sharded, "progress": progress}


def _make_moments(trainer: CrosscoderTrainer) -> None:
    """Adam makes them at its first step, here one that changes nothing."""
    for weights in trainer.sae.parameters():
        weights.grad = torch.zeros_like(weights)
    trainer.optimizer.step()
    trainer.optimizer.zero_grad()
