"""Trains crosscoders on an iterator of stacked activations, with SAELens's trainer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.sae_trainer import Evaluator
from torch import Tensor
from tqdm.auto import tqdm
from typing_extensions import override

from sae_lens_crosscoder.activations.scale import MeanNorms
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.training import wandb_log
from sae_lens_crosscoder.training.config import CrosscoderTrainerConfig
from sae_lens_crosscoder.training.metrics import MetricsLog


class NonFiniteError(ValueError):
    """Training met NaN or infinity; the message names the step and the model."""


class CrosscoderTrainer(SAETrainer[Any, Any]):
    """Trains one crosscoder; `train_on_one_stream` drives several.

    Args:
        cfg: length, learning rate, logging.
        crosscoder: an `L1TrainingCrosscoder` or `BatchTopKTrainingCrosscoder`; changed in place.
        activations: yields raw stacked activations of shape (batch, d_in), base first.
        name: what this crosscoder is called in checkpoints, progress and metrics; empty for a lone one.

    `history` is a pandas table with a row every `cfg.log_frequency` steps: losses, `fve_base`, `fve_chat` and
    `fve_pooled` (of that batch), `l0`, `n_dead`, the threshold where there is one, the learning rate.
    """

    cfg: CrosscoderTrainerConfig
    sae: TrainingCrosscoder

    def __init__(
        self,
        cfg: CrosscoderTrainerConfig,
        crosscoder: TrainingCrosscoder,
        activations: Iterator[Float[Tensor, "batch d_in"]],
        evaluator: Evaluator[Any] | None = None,
        save_checkpoint_fn: Callable[..., None] | None = None,
        name: str = "",
    ) -> None:
        if not isinstance(crosscoder, TrainingCrosscoder):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ValueError(
                f"CrosscoderTrainer trains crosscoders, but got a {type(crosscoder).__name__}. Build one with "
                "slc.BatchTopKTrainingCrosscoder(slc.BatchTopKCrosscoderTrainingConfig(...)); an inference crosscoder "
                "cannot be trained on."
            )
        super().__init__(cfg, crosscoder, activations, evaluator, save_checkpoint_fn)
        self.name = name
        self.metrics_log = MetricsLog(cfg.metrics_path)

    @property
    def history(self) -> pd.DataFrame:
        return self.metrics_log.table()

    @override
    def fit(self) -> TrainingCrosscoder:
        """Train for `cfg.total_training_samples` tokens and return the (training) crosscoder."""
        train_on_one_stream({self.name: self}, self.data_provider)
        return self.sae

    @override
    def _train_step(self, sae: TrainingCrosscoder, sae_in: Float[Tensor, "batch d_in"]) -> TrainStepOutput:
        """SAELens's step with two differences: the clipping is the crosscoder's, and nothing non-finite is learned."""
        self._refuse_non_finite(sae_in)
        sae.train()
        autocast: AbstractContextManager[Any] = self.autocast_if_enabled
        with autocast:
            output = sae.training_forward_pass(
                TrainStepInput(
                    sae_in=sae_in,
                    dead_neuron_mask=self.dead_neurons,
                    coefficients=self.get_coefficients(),
                    n_training_steps=self.n_training_steps,
                    is_logging_step=self.is_logging_step,
                )
            )
        if not torch.isfinite(output.loss):
            losses = ", ".join(f"{name}={value.item():g}" for name, value in output.losses.items())
            raise NonFiniteError(
                f"The loss of crosscoder {self.name!r} became {output.loss.item()} at step {self.n_training_steps} on "
                f"finite activations ({losses}). Lower lr and resume."
            )
        self._count_firing(output.feature_acts)
        output.loss.backward()
        self._clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    @torch.no_grad()
    def _count_firing(self, feature_acts: Float[Tensor, "batch d_sae"]) -> None:
        n_firings = (feature_acts > 0).sum(dim=0)
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired[n_firings > 0] = 0
        self.act_freq_scores += n_firings
        self.n_frac_active_samples += len(feature_acts)

    def _clip_gradients(self) -> None:
        limit = self.sae.cfg.gradient_clip_norm
        norm = torch.nn.utils.clip_grad_norm_(self.sae.parameters(), limit if limit is not None else float("inf"))
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"The gradient of crosscoder {self.name!r} became {norm.item()} at step {self.n_training_steps}, "
                "although its loss was finite. Lower lr, or set gradient_clip_norm."
            )

    def _refuse_non_finite(self, sae_in: Float[Tensor, "batch d_in"]) -> None:
        """Before anything is learned from them, so that a checkpoint holds the state before the bad batch."""
        if torch.isfinite(sae_in).all():
            return
        layout = self.sae.layout
        for name, part in zip(layout.names, layout.split(sae_in), strict=True):
            n_bad = int((~torch.isfinite(part)).any(dim=-1).sum())
            if n_bad:
                raise NonFiniteError(
                    f"The {name} model's activations are NaN or infinite on {n_bad} of {len(part)} tokens at step "
                    f"{self.n_training_steps} (tokens up to {self.n_training_samples}). Look at that model's dtype "
                    "(float16 overflows where bfloat16 does not) and at the hook."
                )

    @property
    def is_logging_step(self) -> bool:
        """Whether the step in progress writes a row of metrics."""
        return (self.n_training_steps + 1) % self.cfg.log_frequency == 0 or self.is_last_step

    @property
    def is_last_step(self) -> bool:
        return self.n_training_samples >= self.cfg.total_training_samples

    @torch.no_grad()
    def metrics(self, output: TrainStepOutput) -> dict[str, float]:
        """One row of `history`, from what the step already has; FVE is that of its batch."""
        fve = VarianceExplained(self.sae.layout)
        fve.add(output.sae_in, output.sae_out)
        row = {
            "step": float(self.n_training_steps + 1),
            "n_training_tokens": float(self.n_training_samples),
            "loss": output.loss.item(),
            **{name: value.item() for name, value in output.losses.items()},
            **{f"fve_{name}": value for name, value in fve.per_model().items()},
            "fve_pooled": fve.pooled(),
            "l0": (output.feature_acts > 0).sum(dim=-1).double().mean().item(),
            "n_dead": float(self.dead_neurons.sum()),
            "lr": self.optimizer.param_groups[0]["lr"],
        }
        for name, value in output.metrics.items():
            assert not callable(value)  # ours are numbers
            row[name] = float(value)
        return row

    @torch.no_grad()
    def log_to_wandb(self, row: Mapping[str, float | int]) -> None:
        """Send a row of metrics, and every `eval_every_n_wandb_logs` rows SAELens's evaluations as well."""
        wandb_log.log(row, self.n_training_steps, self.name)
        if self.evaluator is None or len(self.metrics_log.rows) % self.cfg.logger.eval_every_n_wandb_logs:
            return
        self.sae.eval()
        evaluations = self.evaluator(self.sae, self.data_provider, self.activation_scaler)
        self.sae.train()
        wandb_log.log(evaluations, self.n_training_steps, self.name)


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
    with tqdm(total=total, initial=lead.n_training_samples, desc="Training", unit="tok", unit_scale=True) as progress:
        try:
            while not lead.is_last_step:
                batch = _next_batch(activations, lead)
                for trainer in trainers.values():
                    _one_step(trainer, batch)
                progress.update(len(batch))
                if lead.metrics_log.rows:
                    progress.set_postfix_str(_progress_note(trainers), refresh=False)
        except BaseException:  # an interrupt, too, must not lose what was trained
            for trainer in trainers.values():
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
    return batch


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
    for _ in tqdm(range(lead.cfg.n_batches_for_norm_estimate), desc="Estimating activation scales", leave=False):
        mean_norms.add(_next_batch(activations, lead))
    for trainer in per_model:
        trainer.sae.scale_activations(mean_norms)
    for trainer in stacked:
        trainer.activation_scaler.scaling_factor = mean_norms.stacked_scale()
