"""Trains crosscoders on an iterator of stacked activations, with SAELens's trainer."""

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import Evaluator
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from typing_extensions import override

from sae_lens_crosscoder.activations.harvest import NonFiniteError, validate_activations
from sae_lens_crosscoder.activations.training_batches import TrainingBatches
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.crosscoders.sparse_step.kernels import counts
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.training import wandb_log
from sae_lens_crosscoder.training.metrics import MetricsLog
from sae_lens_crosscoder.training.optimizer import LatentMajorAdam
from sae_lens_crosscoder.training.trainer_config import CrosscoderTrainerConfig

_REMEDY = (
    "Start again with a lower lr or a gradient_clip_norm; from_pretrained_path takes over the weights of an earlier "
    "checkpoint."
)


class StepTrainer(SAETrainer[Any, Any]):
    """Makes one training step at a time: optimizer, schedules, firing counts, metrics. `training.loop` drives it.

    Args:
        cfg: length, learning rate, logging.
        crosscoder: an `L1TrainingCrosscoder` or `BatchTopKTrainingCrosscoder`; changed in place.
        activations: yields raw stacked activations of shape (batch, d_in), base first.
        name: what this crosscoder is called in checkpoints, progress and metrics; empty for a lone one.

    `history` is a pandas table with a row every `cfg.log_frequency` steps: losses, `fve_base`, `fve_chat`,
    `fve_pooled` and `fve_difference` (of chat - base), all of that batch, `l0`, `n_dead`, the threshold where there is
    one, the learning rate of the step. `n_dead` counts after the step.
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
        crosscoder.cfg.validate_run(cfg.total_training_steps, cfg.train_batch_size_samples)
        super().__init__(cfg, crosscoder, activations, evaluator, save_checkpoint_fn)
        self.collectives = crosscoder.collectives
        self._lr_of_step = cfg.lr
        self._parameters = dict(crosscoder.named_parameters())
        self._use_fused_adam()
        self.name = name
        # As they are now: what training finds out, such as activation scales, enters the crosscoder's config.
        whole = crosscoder.cfg.to_dict() | {"d_sae": crosscoder.cfg.d_sae * self.collectives.n_latents}
        self.settings: dict[str, Any] = {"trainer": asdict(cfg), "crosscoder": whole}
        self.metrics_log = MetricsLog(cfg.metrics_path)

    @property
    def history(self) -> pd.DataFrame:
        """The metrics so far, a row per logged step."""
        return self.metrics_log.table()

    @override
    def step(self, batch: Float[Tensor, "batch d_in"]) -> TrainStepOutput:
        """SAELens's, on this process's part of a batch; the others' tokens are counted as well.

        A step that fails leaves the trainer as it was, so that it can be saved and the step made again.
        """
        n_samples, carried = self.n_training_samples, self.sae.carried_state()
        buffers = {name: buffer.clone() for name, buffer in self.sae.named_buffers()}
        try:
            self.n_training_samples += (self.collectives.n_data - 1) * len(batch)
            return super().step(batch)
        except BaseException:
            self.n_training_samples = n_samples
            self.sae.load_carried_state(carried)
            self.sae.load_state_dict(buffers, strict=False)
            self.optimizer.zero_grad()
            raise

    @override
    def _train_step(self, sae: TrainingCrosscoder, sae_in: Float[Tensor, "batch d_in"]) -> TrainStepOutput:
        """SAELens's step with two differences: the clipping is the crosscoder's, and nothing non-finite is learned."""
        # Before anything is learned from them, so that a checkpoint holds the state before the bad batch.
        where = f"at step {self.n_training_steps} (tokens up to {self.n_training_samples})"
        with self.collectives.fail_together():
            validate_activations(sae_in, sae.layout, where)
        if not sae.training:
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
        (output.loss / self.collectives.n_data).backward()
        gradient_norm = self.collectives.reduce_gradients(self._parameters)
        with self.collectives.fail_together():
            self._validate_finite_step(output, gradient_norm)
        self._count_firing(output.feature_acts)  # nothing can fail any more
        self._lr_of_step = self.optimizer.param_groups[0]["lr"]
        self._clip_gradients(gradient_norm)
        self.optimizer.step()
        for weights in self._parameters.values():
            weights.grad = None
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    @torch.no_grad()
    def _count_firing(self, feature_acts: Tensor) -> None:
        n_firings = self.collectives.sum(firing_counts(feature_acts), "data")
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired.masked_fill_(n_firings > 0, 0)
        self.act_freq_scores += n_firings
        self.n_frac_active_samples += self.collectives.n_data * len(feature_acts)

    def _validate_finite_step(self, output: TrainStepOutput, gradient_norm: Tensor) -> None:
        if not math.isfinite(output.loss.item()):
            losses = ", ".join(f"{name}={value.item():g}" for name, value in output.losses.items())
            raise NonFiniteError(
                f"The loss of crosscoder {self.name!r} became {output.loss.item()} at step {self.n_training_steps} on "
                f"finite activations ({losses}). {_REMEDY}"
            )
        if not math.isfinite(gradient_norm.item()):
            gradients = {name: weights.grad for name, weights in self.sae.named_parameters()}
            bad = [name for name, grad in gradients.items() if grad is not None and not torch.isfinite(grad).all()]
            raise NonFiniteError(
                f"The gradient of crosscoder {self.name!r} became {gradient_norm.item()} at step "
                f"{self.n_training_steps}, although its loss was finite "
                f"(not finite: {', '.join(bad) or 'the norm alone'}). {_REMEDY}"
            )

    def _clip_gradients(self, norm: Tensor) -> None:
        """Have the optimizer divide the gradients by the excess of their norm over the limit."""
        limit = self.sae.cfg.gradient_clip_norm
        if limit is not None:
            # Fused optimizers take a divisor, meant for mixed precision, which saves a pass over all gradients.
            self.optimizer.grad_scale = (norm / limit).clamp(min=1).float()  # pyright: ignore[reportAttributeAccessIssue]

    def _use_fused_adam(self) -> None:
        """SAELens's optimizer and schedule, with one kernel in place of a dozen passes over weights and moments."""
        betas = (self.cfg.adam_beta1, self.cfg.adam_beta2)
        self.optimizer = LatentMajorAdam(self.sae.parameters(), lr=self.cfg.lr, betas=betas, fused=True)
        self.lr_scheduler = self._schedule()

    def _schedule(self) -> LRScheduler:
        """The learning rate from the first step on."""
        cfg = self.cfg
        assert cfg.lr_end is not None  # set by the config
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] = cfg.lr
        return get_lr_scheduler(
            cfg.lr_scheduler_name,
            lr=cfg.lr,
            optimizer=self.optimizer,
            warm_up_steps=cfg.lr_warm_up_steps,
            decay_steps=cfg.lr_decay_steps,
            training_steps=cfg.total_training_steps,
            lr_end=cfg.lr_end,
            num_cycles=cfg.n_restart_cycles,
        )

    @override
    def load_trainer_state(self, checkpoint_path: Path | str) -> None:
        """SAELens's, but for this run's length, which may be another than the checkpoint's."""
        super().load_trainer_state(checkpoint_path)
        self.follow_own_schedule()

    def follow_own_schedule(self) -> None:
        """Continue after the steps made so far with this config's learning rate and checkpoints."""
        if (
            self.sae.cfg.normalize_activations == "expected_average_only_in"
            and self.activation_scaler.scaling_factor is None
        ):
            self.sae.cfg.normalize_activations = "none"  # training was done, and the factor folded
        self.lr_scheduler = self._schedule()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            for _ in range(self.n_training_steps):
                self.lr_scheduler.step()
        self.checkpoint_thresholds = [n for n in self.checkpoint_thresholds if n > self.n_training_samples]

    @override
    def set_final_sae_metadata(self) -> None:
        """Record L0 and the number of dead latents over all shards, as SAELens does for one process."""
        if self.n_frac_active_samples > 0:
            metadata = self.sae.cfg.metadata
            metadata.l0 = self.collectives.sum(self.feature_sparsity.sum(), "latents").item()
            metadata.num_dead_features = self.collectives.sum_int(int(self.dead_neurons.sum()), "latents")

    @property
    def is_logging_step(self) -> bool:
        """True if the step in progress writes a row of metrics."""
        return (self.n_training_steps + 1) % self.cfg.log_frequency == 0 or self.is_last_step

    @property
    def is_last_step(self) -> bool:
        """True if this step trains on the last tokens."""
        return self.n_training_samples >= self.cfg.total_training_samples

    @torch.no_grad()
    def metrics(self, output: TrainStepOutput) -> dict[str, float]:
        """One row of `history`, from what the step already has; FVE is that of its batch."""
        collectives = self.collectives
        fve = VarianceExplained(self.sae.layout)
        fve.add(collectives.all_gather(output.sae_in, "data"), collectives.all_gather(output.sae_out, "data"))
        n_firings = collectives.sum(firing_counts(output.feature_acts).sum(), "all")
        row = {
            "step": float(self.n_training_steps + 1),
            "n_training_tokens": float(self.n_training_samples),
            "loss": collectives.mean(output.loss).item(),
            **{name: collectives.mean(value).item() for name, value in output.losses.items()},
            **{f"fve_{name}": value for name, value in fve.all_figures().items()},
            "l0": n_firings.item() / (collectives.n_data * len(output.feature_acts)),
            "n_dead": float(collectives.sum(self.dead_neurons.sum(), "latents")),
            "lr": self._lr_of_step,
        }
        if self.sae.layout.hook_names:
            dead_at = counts(self.sae.hooks_read[self.dead_neurons], len(self.sae.layout.hook_names))
            n_dead = collectives.sum(dead_at, "latents").tolist()
            row |= {f"n_dead_{name}": float(n) for name, n in zip(self.sae.layout.hook_names, n_dead, strict=True)}
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
        batches = self.data_provider
        with batches.paused() if isinstance(batches, TrainingBatches) else nullcontext():
            evaluations = self.evaluator(self.sae, batches, self.activation_scaler)
        self.sae.train()
        wandb_log.log(evaluations, self.n_training_steps, self.name)


def firing_counts(feature_acts: Tensor) -> Int[Tensor, " d_sae"]:
    """Count the tokens of a batch on which each latent is active; activations may be a sparse tensor."""
    if feature_acts.is_sparse:
        return counts(feature_acts.indices()[1], feature_acts.shape[1])
    return (feature_acts > 0).sum(dim=0)
