"""Trainer config: length, learning rate, logging, checkpoints."""

import math
from dataclasses import dataclass

from sae_lens.config import SAETrainerConfig

from sae_lens_crosscoder.activations.dominant_tokens import MAX_NORM_RATIO, validate_max_norm_ratio
from sae_lens_crosscoder.storage.field_types import validate_config, validate_minimums
from sae_lens_crosscoder.training.nested_configs import logging_config

# SAELens's schedules.
LR_SCHEDULERS = ("constant", "cosineannealing", "cosineannealingwarmrestarts")
DEAD_AFTER_TOKENS = 10_000_000


def default_dead_feature_window(batch_size: int) -> int:
    """Steps without being selected after which a latent is dead: the paper's 10 million tokens.

    >>> default_dead_feature_window(2048)
    4883
    """
    return math.ceil(DEAD_AFTER_TOKENS / batch_size)


@dataclass
class CrosscoderTrainerConfig(SAETrainerConfig):
    """SAELens's trainer config with the paper's defaults; every field of SAELens's keeps its meaning."""

    train_batch_size_samples: int = 2048
    """Tokens per step."""
    lr: float = 1e-4
    lr_warm_up_steps: int = 1000
    dead_feature_window: int = 0
    """Steps without being selected after which a latent is dead; 0 for the paper's 10 million tokens."""
    max_norm_ratio: float | None = MAX_NORM_RATIO
    """Tokens whose norm exceeds this many times the median norm of any model are left out. None keeps all tokens."""
    log_frequency: int = 100
    """Steps between two rows of `CrosscoderTrainer.history` and of metrics.jsonl."""
    n_checkpoints_kept: int | None = None
    """Number of checkpoints to keep; older ones are deleted once a newer one is complete. None keeps all."""
    resume_from_checkpoint: str | None = None
    """A checkpoint to resume from, or `latest`: the newest complete one of the same settings in `checkpoint_path`."""
    metrics_path: str | None = None
    """A file such as `run/metrics.jsonl` that metrics are appended to; None to keep them in memory only."""

    def __post_init__(self) -> None:
        validate_config(self)
        self.logger = logging_config(self.logger)
        self._validate_numbers()
        validate_max_norm_ratio(self.max_norm_ratio)
        if self.dead_feature_window == 0:
            self.dead_feature_window = default_dead_feature_window(self.train_batch_size_samples)
        if self.lr_end is None:
            self.lr_end = self.lr / 10
        if self.total_training_samples < self.train_batch_size_samples:
            raise ValueError(
                f"total_training_samples={self.total_training_samples} is less than one batch of "
                f"{self.train_batch_size_samples}: training would make no step."
            )
        n_scheduled = self.lr_warm_up_steps + self.lr_decay_steps
        if n_scheduled > self.total_training_steps:
            raise ValueError(
                f"lr_warm_up_steps={self.lr_warm_up_steps} plus lr_decay_steps={self.lr_decay_steps} exceed the "
                f"{self.total_training_steps} steps of this run: shorten them or train on more tokens."
            )
        n_between = self.total_training_steps - n_scheduled
        if self.lr_scheduler_name.lower() != "constant" and n_between < self.n_restart_cycles:
            raise ValueError(
                f"lr_scheduler_name={self.lr_scheduler_name!r} has {n_between} steps between warm-up and decay for "
                f"{self.n_restart_cycles} cycles: shorten lr_warm_up_steps or lr_decay_steps."
            )

    def _validate_numbers(self) -> None:
        validate_minimums(self, train_batch_size_samples=1, log_frequency=1, n_checkpoints_kept=1, n_checkpoints=0)
        validate_minimums(self, lr_warm_up_steps=0, lr_decay_steps=0, n_restart_cycles=1, n_batches_for_norm_estimate=1)
        validate_minimums(self, dead_feature_window=0, feature_sampling_window=1, lr_end=0)
        validate_config(self.logger)
        validate_minimums(self.logger, wandb_log_frequency=1, eval_every_n_wandb_logs=1)
        if self.lr <= 0:
            raise ValueError(f"lr={self.lr} must be positive.")
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1).")
        if self.lr_scheduler_name.lower() not in LR_SCHEDULERS:
            raise ValueError(f"lr_scheduler_name={self.lr_scheduler_name!r} is not one of {LR_SCHEDULERS}.")
