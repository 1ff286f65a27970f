"""The training loop: fits one or several crosscoders on one stream of activations."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from typing import Any

from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_crosscoder.activations.scales import MeanNorms
from sae_lens_crosscoder.activations.training_batches import TrainingBatches
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.training.checkpoints.folder import CheckpointError
from sae_lens_crosscoder.training.checkpoints.run_checkpoints import RunCheckpoints
from sae_lens_crosscoder.training.dominant_tokens import leave_out_dominant_tokens, record_dominant_tokens
from sae_lens_crosscoder.training.interruption import Interruption, interruptible
from sae_lens_crosscoder.training.polishing.in_training import polish_in_training, polish_is_due, validate_polish
from sae_lens_crosscoder.training.trainer import StepTrainer
from sae_lens_crosscoder.training.validation import stream_ended


class CrosscoderTrainer(StepTrainer):
    """Trains one crosscoder with `fit`; `train_together` trains several on one stream.

    `history` is a pandas table with a row every `cfg.log_frequency` steps: losses, `fve_base`, `fve_chat`,
    `fve_pooled` and `fve_difference` (of chat - base), all of that batch, `l0`, `n_dead` (after the step), the
    threshold if the architecture has one, the learning rate of the step.

    Args:
        cfg: length, learning rate, logging.
        crosscoder: an `L1TrainingCrosscoder` or `BatchTopKTrainingCrosscoder`; trained in place.
        activations: yields raw stacked activations of shape (batch, d_in), base first.
        name: the crosscoder's name in checkpoints, progress and metrics; empty for a single one.
    """

    @override
    def fit(self) -> TrainingCrosscoder:
        """Train for `cfg.total_training_samples` tokens and return the (training) crosscoder."""
        train_together({self.name: self}, self.data_provider)
        return self.sae


@validate_arguments
def train_together(
    trainers: Mapping[str, StepTrainer],
    activations: Iterable[Float[Tensor, "batch d_in"]],
    *,
    settings: Mapping[str, Any] | None = None,
    n_ahead: int = 0,
) -> RunCheckpoints:
    """Train several crosscoders on the same batches of activations, step by step.

    All trainers must train on the same number of tokens. The first trainer's config names the checkpoint folder and the
    checkpoint to resume from. If the stream fails or ends early, a value becomes NaN or infinite, or SIGINT or SIGTERM
    arrives, the state before that is saved there, and the error names the folder.

    Args:
        activations: batches from the start of the stream, also when training resumes; with several processes, this
            process's share of each batch.
        settings: settings that identify the run, so that `latest` finds only its checkpoints; by default the trainers'
            configs.
        n_ahead: batches made ahead in a background thread.

    Returns:
        The checkpoints of the run, which can save it once more.
    """
    wanted = {trainer.cfg.total_training_samples for trainer in trainers.values()}
    if len(wanted) != 1:
        raise ValueError(f"Crosscoders on one stream must train on the same number of tokens, not {sorted(wanted)}.")
    validate_polish(trainers)
    if settings is None:
        settings = {name: trainer.settings for name, trainer in trainers.items()}
    collectives = next(iter(trainers.values())).collectives
    with closing(TrainingBatches(activations, n_ahead)) as batches, interruptible(collectives) as interruption:
        for trainer in trainers.values():
            trainer.sae.to(trainer.cfg.device)
            trainer.data_provider = batches
        checkpoints = RunCheckpoints(trainers, batches, settings)
        checkpoints.resume()
        leave_out_dominant_tokens(trainers, batches)
        _estimate_scales(trainers, batches, interruption)
        _train(trainers, batches, checkpoints, interruption)
        record_dominant_tokens(trainers, batches)
        for trainer in trainers.values():
            _finish(trainer)
        if next(iter(trainers.values())).cfg.save_final_checkpoint:
            checkpoints.save(prefix="final_")
    return checkpoints


def _train(
    trainers: Mapping[str, StepTrainer],
    batches: TrainingBatches,
    checkpoints: RunCheckpoints,
    interruption: Interruption,
) -> None:
    lead = next(iter(trainers.values()))
    unfinished: Tensor | None = None
    with tqdm(
        total=lead.cfg.total_training_samples,
        initial=checkpoints.n_tokens,
        desc="Training",
        unit="tok",
        unit_scale=True,
        mininterval=1,
        disable=not lead.collectives.is_lead,
    ) as progress:
        try:
            while not all(trainer.is_last_step for trainer in trainers.values()):
                for trainer in trainers.values():
                    if polish_is_due(trainer):
                        polish_in_training(trainer, batches)
                with lead.collectives.fail_together():
                    unfinished = _next_batch(batches, lead)
                batch = lead.collectives.all_gather(unfinished, "latents")
                _one_step(trainers, batch)
                progress.update(lead.collectives.n_data * len(batch))
                unfinished = None
                if lead.metrics_log.rows:
                    progress.set_postfix_str(_progress_note(trainers), refresh=False)
                if _checkpoint_is_due(lead):
                    checkpoints.save()
                interruption.raise_if_requested()
        except (KeyboardInterrupt, CheckpointError):  # asked not to save, or not able to
            raise
        except BaseException as error:
            if unfinished is not None:
                batches.give_back(unfinished)
            checkpoints.save_because_of(error)
            raise


def _one_step(trainers: Mapping[str, StepTrainer], batch: Float[Tensor, "batch d_in"]) -> None:
    """Train every crosscoder on the batch, except those that already did before another's step failed."""
    step = min(trainer.n_training_steps for trainer in trainers.values())
    for trainer in trainers.values():
        if trainer.n_training_steps > step:
            continue
        if trainer.n_frac_active_samples > 0:  # or a failed attempt at this step did it
            trainer.maybe_reset_sparsity()
        # On the crosscoder's device, because half precision is half as much to move.
        output = trainer.step(batch.to(trainer.sae.device).to(trainer.sae.dtype))
        if trainer.is_logging_step:
            row = trainer.metrics(output)
            trainer.metrics_log.write(row)
            if trainer.cfg.logger.log_to_wandb:
                trainer.log_to_wandb(row)
        trainer.n_training_steps += 1


def _checkpoint_is_due(trainer: StepTrainer) -> bool:
    thresholds = trainer.checkpoint_thresholds
    is_due = bool(thresholds) and trainer.n_training_samples > thresholds[0]
    if is_due:
        thresholds.pop(0)
    return is_due


def _next_batch(
    activations: Iterator[Float[Tensor, "batch d_in"]], trainer: StepTrainer
) -> Float[Tensor, "batch d_in"]:
    try:
        batch = next(activations)
    except StopIteration:
        raise stream_ended(trainer.n_training_samples, trainer.cfg.total_training_samples) from None
    n_ranks, wanted = trainer.collectives.n_processes, trainer.cfg.train_batch_size_samples
    if n_ranks > 1 and len(batch) * n_ranks != wanted:
        raise ValueError(
            f"The batch has {len(batch)} rows on this rank, expected {wanted} / {n_ranks}. "
            "Every rank needs the same share."
        )
    return batch


def _progress_note(trainers: Mapping[str, StepTrainer]) -> str:
    notes: list[str] = []
    for name, trainer in trainers.items():
        row = trainer.metrics_log.rows[-1]
        notes.append(f"{name} loss {row['loss']:.3g}, FVE {row['fve_pooled']:.3f}, L0 {row['l0']:.1f}".strip())
    return " | ".join(notes)


def _finish(trainer: StepTrainer) -> None:
    if trainer.activation_scaler.scaling_factor is not None:
        trainer.sae.fold_activation_norm_scaling_factor(trainer.activation_scaler.scaling_factor)
        trainer.activation_scaler.scaling_factor = None
    trainer.set_final_sae_metadata()


def _estimate_scales(
    trainers: Mapping[str, StepTrainer], activations: Iterator[Tensor], interruption: Interruption
) -> None:
    """Estimate activation scales on batches that are not trained on, as SAELens does."""
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
        with lead.collectives.fail_together():
            batch = next(activations, None)
            if batch is None:
                raise ValueError(
                    f"The activations ended while scales were estimated on n_batches_for_norm_estimate={wanted} "
                    "batches, before training. Lower that number, or give a longer (or repeating) stream."
                )
        mean_norms.add(lead.collectives.all_gather(batch, "all"))
        interruption.raise_if_requested()
    for trainer in per_model:
        trainer.sae.scale_activations(mean_norms)
    for trainer in stacked:
        trainer.activation_scaler.scaling_factor = mean_norms.stacked_scale()
