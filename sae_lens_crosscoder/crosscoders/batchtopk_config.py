"""Config of the BatchTopK crosscoder."""

import warnings
from dataclasses import dataclass
from typing import Literal

from sae_lens import BatchTopKTrainingSAEConfig, SAEConfig
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.inference import JumpReLUCrosscoderConfig
from sae_lens_crosscoder.crosscoders.partition import PartitionFields
from sae_lens_crosscoder.crosscoders.training_config import CrosscoderTrainingConfigBase
from sae_lens_crosscoder.storage.field_types import validate_minimums


@dataclass
class BatchTopKCrosscoderTrainingConfig(PartitionFields, CrosscoderTrainingConfigBase, BatchTopKTrainingSAEConfig):
    """Keeps the `k` largest scores per token on average over the batch. Defaults are the paper's.

    With `n_base_exclusive` and `n_chat_exclusive`, some latents are confined to one model (a partition), and have a
    budget of their own, `k_exclusive` of the `k`.

    >>> BatchTopKCrosscoderTrainingConfig(d_model=2304, d_sae=73_728, k=100).d_in
    4608
    """

    k: float | int = 100  # pyright: ignore[reportIncompatibleVariableOverride]
    """Latents kept per token, on average over the batch."""
    k_max: float | int | None = None
    """With `k_anneal_steps`: the number of latents kept at the first step."""
    k_anneal_steps: int = 0
    """Steps over which k falls linearly from `k_max` to exactly `k`; 0 for a constant k."""
    k_exclusive: float | int | None = None
    """With exclusive latents: how many of the `k` are kept among these; None means a quarter."""
    aux_loss_coefficient: float = 1 / 32
    """alpha, the weight of the loss that revives dead latents."""
    threshold_rule: Literal["tracking", "authors"] = "tracking"
    """Rule of the inference threshold, an average of the smallest selected scores. `tracking` averages over the last
    thirtieth of training, so that it is right after short runs too; after 30 / `topk_threshold_lr` steps it is the
    paper's average. `authors` is the paper's code: `tracking` until step 1000, then a new average that starts from one
    sample."""
    topk_threshold_lr: float = 0.001
    """Weight of the newest batch in that average, in the long run."""
    polish_at: float | None = None
    """Share of the steps after which matching pursuit improves the dictionary (`training.polish`, in the run); None for
    no polish. Good values leave at least a fifth of the steps, with a falling learning rate and `score="max"`."""
    polish_tokens_per_round: int = 12_288
    """Tokens of each of the 8 rounds of that polish, which are not trained on."""
    decoder_bias_init: Literal["geometric_median", "zeros"] = "geometric_median"
    gradient_clip_norm: float | None = 1.0

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ValueError(f"k={self.k} must be above 0 and at most d_sae={self.d_sae}, the number of latents.")
        validate_minimums(self, k_anneal_steps=0)
        if (self.k_max is None) != (self.k_anneal_steps == 0):
            raise ValueError(
                f"k_max={self.k_max} and k_anneal_steps={self.k_anneal_steps} belong together: set both or neither."
            )
        if self.k_max is not None and not self.k <= self.k_max <= self.d_sae:
            raise ValueError(f"k_max={self.k_max} must lie between k={self.k} and d_sae={self.d_sae}.")
        self.validate_partition(self.d_sae, self.layout)
        self._validate_polish()
        if self.k_exclusive is not None and self.partition is None:
            raise ValueError(
                f"k_exclusive={self.k_exclusive} is the budget of exclusive latents: set n_base_exclusive or "
                "n_chat_exclusive as well."
            )
        if self.k_exclusive is not None and not 0 < self.k_exclusive < self.k:
            raise ValueError(f"k_exclusive={self.k_exclusive} must be above 0 and below k={self.k}; try a quarter.")
        if self.threshold_rule not in ("tracking", "authors"):
            raise ValueError(f"threshold_rule={self.threshold_rule!r} is not one of 'tracking', 'authors'.")
        if not 0 < self.topk_threshold_lr <= 1:
            raise ValueError(f"topk_threshold_lr={self.topk_threshold_lr} must lie in (0, 1].")
        if self.aux_loss_coefficient < 0:
            raise ValueError(f"aux_loss_coefficient={self.aux_loss_coefficient} must not be negative; 0 turns it off.")
        if not self.rescale_acts_by_decoder_norm:
            raise ValueError("rescale_acts_by_decoder_norm=False is not available: use score='none'.")
        if self.use_sparse_activations:
            raise ValueError("use_sparse_activations=True is SAELens's option for its own decoder; leave it False.")

    def _validate_polish(self) -> None:
        validate_minimums(self, polish_tokens_per_round=1)
        if self.polish_at is None:
            return
        if not 0 < self.polish_at < 1:
            raise ValueError(f"polish_at={self.polish_at} must be a share of the steps between 0 and 1, such as 0.75.")
        if self.partition is not None or self.architecture() != "batchtopk_crosscoder":
            raise ValueError(
                f"polish_at={self.polish_at} is not available for a {self.architecture()} with "
                f"n_base_exclusive={self.n_base_exclusive} and n_chat_exclusive={self.n_chat_exclusive}: only plain "
                "BatchTopK is polished. Set it to None."
            )

    @override
    def validate_run(self, n_steps: int, batch_size: int) -> None:
        if int(self.k * batch_size) < 1:
            raise ValueError(
                f"k={self.k} selects nothing from a batch of {batch_size} tokens: k times the batch size must be at "
                "least 1."
            )
        if self.polish_at is not None and round(self.polish_at * n_steps) >= n_steps:
            raise ValueError(
                f"polish_at={self.polish_at} leaves no step of the {n_steps} behind it. Lower it, to about 0.75, or "
                "train on more tokens."
            )
        if self.k_anneal_steps > n_steps:
            warnings.warn(
                f"k_anneal_steps={self.k_anneal_steps} exceeds the {n_steps} steps of this run: k={self.k} will not be "
                "reached. Shorten it, train on more tokens, or resume this run as a longer one.",
                stacklevel=2,
            )

    def budgets(self, k: float | int, n_tokens: int) -> tuple[int, int]:
        """Scores to select among exclusive and among shared latents, where `k` is that of the step.

        >>> cfg = BatchTopKCrosscoderTrainingConfig(d_model=4, d_sae=16, k=8, n_chat_exclusive=2)
        >>> cfg.budgets(k=8, n_tokens=10), cfg.budgets(k=16, n_tokens=10)
        ((20, 60), (40, 120))
        """
        exclusive = self.k / 4 if self.k_exclusive is None else self.k_exclusive
        annealing = k / self.k
        return int(exclusive * annealing * n_tokens), int((self.k - exclusive) * annealing * n_tokens)

    @classmethod
    @override
    def architecture(cls) -> str:
        return "batchtopk_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUCrosscoderConfig
