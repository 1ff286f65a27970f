"""Drives one or several trainers over a single stream of activations."""

from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.scale import MeanNorms
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer


def train_on_one_stream(
    trainers: Mapping[str, CrosscoderTrainer], activations: Iterator[Float[Tensor, "batch d_in"]]
) -> None:
    """Train several crosscoders in lockstep, each batch of activations made once and given to all.

    All trainers must want the same number of tokens. When the stream ends early, activations are not finite, or the
    run is interrupted, every trainer with a `checkpoint_path` saves a checkpoint before the error goes on.
    """
    wanted = {trainer.cfg.total_training_samples for trainer in trainers.values()}
    if len(wanted) != 1:
        raise ValueError(f"Crosscoders on one stream must train for equally many tokens, not {sorted(wanted)}.")
    lead = next(iter(trainers.values()))
    total = lead.cfg.total_training_samples
    activations = iter(activations)
    for trainer in trainers.values():
        trainer.sae.to(trainer.cfg.device)
    _estimate_scales(trainers, activations)
    with tqdm(
        total=total,
        initial=lead.n_training_samples,
        desc="Training",
        unit="tok",
        unit_scale=True,
        mininterval=1,
        disable=not lead.ranks.is_lead,
    ) as progress:
        try:
            while not lead.is_last_step:
                with lead.ranks.together():
                    batch = _next_batch(activations, lead)
                batch = lead.ranks.gathered(batch, "latents")
                for trainer in trainers.values():
                    _one_step(trainer, batch)
                progress.update(lead.ranks.n_data * len(batch))
                if lead.metrics_log.rows:
                    progress.set_postfix_str(_progress_note(trainers), refresh=False)
        except BaseException as error:  # an interrupt, too, must not lose what was trained
            for trainer in trainers.values():
                if trainer.n_training_steps > 0 and trainer.ranks.can_still_meet(error):
                    save_checkpoint(trainer)
            raise
    for trainer in trainers.values():
        _finish(trainer)


def save_checkpoint(trainer: CrosscoderTrainer, prefix: str = "") -> None:
    """Write weights and trainer state to `<checkpoint_path>/<tokens>[/<name>]`; nothing without a checkpoint path."""
    if trainer.cfg.checkpoint_path is not None:
        folder = Path(f"{prefix}{trainer.n_training_samples}", trainer.name)
        trainer.save_checkpoint(checkpoint_name=str(folder))


def _one_step(trainer: CrosscoderTrainer, batch: Float[Tensor, "batch d_in"]) -> None:
    trainer.maybe_reset_sparsity()
    output = trainer.step(batch)
    if trainer.is_logging_step:
        row = trainer.metrics(output)
        trainer.metrics_log.write(row)
        if trainer.cfg.logger.log_to_wandb:
            trainer.log_to_wandb(row)
    thresholds = trainer.checkpoint_thresholds
    trainer.n_training_steps += 1
    if thresholds and trainer.n_training_samples > thresholds[0]:
        save_checkpoint(trainer)
        thresholds.pop(0)


def _next_batch(
    activations: Iterator[Float[Tensor, "batch d_in"]], trainer: CrosscoderTrainer
) -> Float[Tensor, "batch d_in"]:
    try:
        batch = next(activations)
    except StopIteration:
        raise ValueError(
            f"The activations ended after {trainer.n_training_samples} tokens, but "
            f"total_training_samples={trainer.cfg.total_training_samples}. Give a longer (or repeating) stream, or "
            "train on fewer tokens."
        ) from None
    if batch.ndim != 2 or batch.shape[0] == 0:
        raise ValueError(f"Activations must come as (batch, d_in) with at least one token, not {tuple(batch.shape)}.")
    trainer.sae.layout.split(batch)  # says what is wrong with the width
    # On the crosscoder's device, because half precision is half as much to move.
    return batch.to(trainer.sae.device).to(trainer.sae.dtype)


def _progress_note(trainers: Mapping[str, CrosscoderTrainer]) -> str:
    notes: list[str] = []
    for name, trainer in trainers.items():
        row = trainer.metrics_log.rows[-1]
        notes.append(f"{name} loss {row['loss']:.3g}, FVE {row['fve_pooled']:.3f}, L0 {row['l0']:.1f}".strip())
    return " | ".join(notes)


def _finish(trainer: CrosscoderTrainer) -> None:
    if trainer.activation_scaler.scaling_factor is not None:
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.activation_scaler.scaling_factor = None
    trainer.set_final_sae_metadata()
    if trainer.cfg.save_final_checkpoint:
        save_checkpoint(trainer, prefix="final_")


def _estimate_scales(
    trainers: Mapping[str, CrosscoderTrainer], activations: Iterator[Float[Tensor, "batch d_in"]]
) -> None:
    """Fix activation scales on batches that are then not trained on, as SAELens does."""
    per_model = [trainer for trainer in trainers.values() if trainer.sae.wants_activation_scales]
    stacked = [
        trainer
        for trainer in trainers.values()
        if trainer.sae.cfg.normalize_activations == "expected_average_only_in"
        and trainer.activation_scaler.scaling_factor is None
    ]
    if not per_model and not stacked:
        return
    lead = next(iter(trainers.values()))
    mean_norms = MeanNorms(lead.sae.layout)
    wanted = lead.cfg.n_batches_for_norm_estimate
    for _ in tqdm(range(wanted), desc="Estimating activation scales", leave=False):
        batch = next(activations, None)
        if batch is None:
            raise ValueError(
                f"The activations ended while scales were estimated on n_batches_for_norm_estimate={wanted} batches, "
                "before training. Lower that number, or give a longer (or repeating) stream."
            )
        mean_norms.add(lead.ranks.gathered(batch, "all"))
    for trainer in per_model:
        trainer.sae.scale_activations(mean_norms)
    for trainer in stacked:
        trainer.activation_scaler.scaling_factor = mean_norms.stacked_scale()
