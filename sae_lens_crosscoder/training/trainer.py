"""Trains crosscoders on an iterator of stacked activations, with SAELens's trainer."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from sae_lens import SAETrainer
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from sae_lens.training.optim import get_lr_scheduler
from sae_lens.training.sae_trainer import Evaluator
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.activations.checks import NonFiniteError, require_finite
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.crosscoders.kernels import counts
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.training import wandb_log
from sae_lens_crosscoder.training.config import CrosscoderTrainerConfig
from sae_lens_crosscoder.training.metrics import MetricsLog
from sae_lens_crosscoder.training.optimizer import LatentMajorAdam


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
        self._use_fused_adam()
        self.name = name
        self.metrics_log = MetricsLog(cfg.metrics_path)

    @property
    def history(self) -> pd.DataFrame:
        """The metrics so far, a row per logged step."""
        return self.metrics_log.table()

    @override
    def fit(self) -> TrainingCrosscoder:
        """Train for `cfg.total_training_samples` tokens and return the (training) crosscoder."""
        from sae_lens_crosscoder.training.stream import train_on_one_stream  # it drives this class

        train_on_one_stream({self.name: self}, self.data_provider)
        return self.sae

    @override
    def _train_step(self, sae: TrainingCrosscoder, sae_in: Float[Tensor, "batch d_in"]) -> TrainStepOutput:
        """SAELens's step with two differences: the clipping is the crosscoder's, and nothing non-finite is learned."""
        # Before anything is learned from them, so that a checkpoint holds the state before the bad batch.
        where = f"at step {self.n_training_steps} (tokens up to {self.n_training_samples})"
        require_finite(sae_in, sae.layout, where)
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
        if not torch.isfinite(output.loss):
            losses = ", ".join(f"{name}={value.item():g}" for name, value in output.losses.items())
            raise NonFiniteError(
                f"The loss of crosscoder {self.name!r} became {output.loss.item()} at step {self.n_training_steps} on "
                f"finite activations ({losses}). Lower lr and resume."
            )
        self._count_firing(output.feature_acts)
        output.loss.backward()
        self._check_and_clip_gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.lr_scheduler.step()
        for scheduler in self.coefficient_schedulers.values():
            scheduler.step()
        return output

    @torch.no_grad()
    def _count_firing(self, feature_acts: Tensor) -> None:
        n_firings = firing_counts(feature_acts)
        self.n_forward_passes_since_fired += 1
        self.n_forward_passes_since_fired[n_firings > 0] = 0
        self.act_freq_scores += n_firings
        self.n_frac_active_samples += len(feature_acts)

    def _check_and_clip_gradients(self) -> None:
        """Raise for gradients that are not finite; have the optimizer divide them by their excess over the limit."""
        gradients = [weights.grad for weights in self.sae.parameters() if weights.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not torch.isfinite(norm):
            raise NonFiniteError(
                f"The gradient of crosscoder {self.name!r} became {norm.item()} at step {self.n_training_steps}, "
                "although its loss was finite. Lower lr, or set gradient_clip_norm."
            )
        limit = self.sae.cfg.gradient_clip_norm
        if limit is not None:
            # Fused optimizers take a divisor, meant for mixed precision, which saves a pass over all gradients.
            self.optimizer.grad_scale = (norm / limit).clamp(min=1).float()  # pyright: ignore[reportAttributeAccessIssue]

    def _use_fused_adam(self) -> None:
        """SAELens's optimizer and schedule, with one kernel in place of a dozen passes over weights and moments."""
        cfg = self.cfg
        assert cfg.lr_end is not None  # set by the config
        betas = (cfg.adam_beta1, cfg.adam_beta2)
        self.optimizer = LatentMajorAdam(self.sae.parameters(), lr=cfg.lr, betas=betas, fused=True)
        self.lr_scheduler = get_lr_scheduler(
            cfg.lr_scheduler_name,
            lr=cfg.lr,
            optimizer=self.optimizer,
            warm_up_steps=cfg.lr_warm_up_steps,
            decay_steps=cfg.lr_decay_steps,
            training_steps=cfg.total_training_steps,
            lr_end=cfg.lr_end,
            num_cycles=cfg.n_restart_cycles,
        )

    @property
    def is_logging_step(self) -> bool:
        """Whether the step in progress writes a row of metrics."""
        return (self.n_training_steps + 1) % self.cfg.log_frequency == 0 or self.is_last_step

    @property
    def is_last_step(self) -> bool:
        """Whether all tokens have been trained on when this step is over."""
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
            "l0": firing_counts(output.feature_acts).sum().item() / len(output.feature_acts),
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


def firing_counts(feature_acts: Tensor) -> Int[Tensor, " d_sae"]:
    """On how many tokens of a batch each latent is on; activations may be a sparse tensor."""
    if feature_acts.is_sparse:
        return counts(feature_acts.indices()[1], feature_acts.shape[1])
    return (feature_acts > 0).sum(dim=0)
