"""The JumpReLU crosscoder: every latent learns its own threshold."""

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from jaxtyping import Float
from sae_lens import JumpReLUTrainingSAE, JumpReLUTrainingSAEConfig, SAEConfig
from sae_lens.saes.jumprelu_sae import JumpReLU, Step, calculate_pre_act_loss
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.inference import JumpReLUCrosscoderConfig, threshold_dtype
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code, DenseCode
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.crosscoders.training_config import CrosscoderTrainingConfigBase
from sae_lens_crosscoder.storage.field_types import validate_minimums

SparsityLoss = Literal["step", "tanh", "quadratic"]


@dataclass
class JumpReLUCrosscoderTrainingConfig(CrosscoderTrainingConfigBase, JumpReLUTrainingSAEConfig):
    """Trains a threshold per latent, with a penalty on the number of active latents.

    Two published setups, in SAELens's terms: DeepMind's is `step` (or `quadratic`) with a rectangle gradient that
    reaches thresholds alone; Anthropic's is `tanh` with `jumprelu_ste_to_input=True` and a pre-activation loss.

    >>> JumpReLUCrosscoderTrainingConfig(d_model=64, d_sae=256, l0_coefficient=0.01).jumprelu_sparsity_loss_mode
    'step'
    """

    has_sparse_step: ClassVar[bool] = False

    jumprelu_init_threshold: float = 0.1
    """Threshold of every latent's pre-activation at the start."""
    jumprelu_bandwidth: float = 0.1
    """Width of the rectangle around the threshold within which pre-activations give it a gradient."""
    jumprelu_sparsity_loss_mode: SparsityLoss = "step"
    """Penalty per token: `step` counts active latents; `tanh` sums `tanh(scale * score)`, scores as `score` says;
    `quadratic` is `2 / target_l0 * (L0 - target_l0)^2`."""
    l0_coefficient: float = 0.01
    """Weight of the penalty: by how much one more active latent must lower the loss."""
    l0_warm_up_steps: int = 0
    """Steps over which the penalty's weight rises linearly from 0."""
    pre_act_loss_coefficient: float | None = None
    """Weight of a loss that lifts dead latents' pre-activations to their thresholds; None for none."""
    jumprelu_tanh_scale: float = 4.0
    """Scale inside the `tanh` penalty."""
    jumprelu_ste_to_input: bool = False
    """True lets the rectangle's gradient reach the encoder as well as the threshold."""
    target_l0: float | None = None
    """Number of active latents per token that the `quadratic` penalty aims at."""
    training_step: Literal["sparse", "dense"] = "dense"
    """Must stay `dense`."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        mode = self.jumprelu_sparsity_loss_mode
        if mode not in get_args(SparsityLoss):
            raise ValueError(f"jumprelu_sparsity_loss_mode={mode!r} is not one of {get_args(SparsityLoss)}.")
        if (mode == "quadratic") != (self.target_l0 is not None):
            raise ValueError(
                f"target_l0={self.target_l0} and jumprelu_sparsity_loss_mode={mode!r} do not fit: the mode 'quadratic' "
                "needs a target_l0, and no other mode has one."
            )
        if self.target_l0 is not None and not 0 < self.target_l0 <= self.d_sae:
            raise ValueError(f"target_l0={self.target_l0} must be above 0 and at most d_sae={self.d_sae}.")
        for name in ("jumprelu_bandwidth", "jumprelu_tanh_scale"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}={getattr(self, name)} must be positive.")
        validate_minimums(self, jumprelu_init_threshold=0, l0_coefficient=0, l0_warm_up_steps=0)
        if self.pre_act_loss_coefficient is not None:
            validate_minimums(self, pre_act_loss_coefficient=0)

    @override
    def validate_run(self, n_steps: int, batch_size: int) -> None:
        if self.l0_warm_up_steps > n_steps:
            warnings.warn(
                f"l0_warm_up_steps={self.l0_warm_up_steps} exceeds the {n_steps} steps of this run: l0_coefficient "
                "will not be reached. Shorten it, train on more tokens, or resume this run as a longer one.",
                stacklevel=2,
            )

    # SAELens copies every field of the inference config from here.

    @property
    def n_base_exclusive(self) -> int:
        """0, as there is no partition."""
        return 0

    @property
    def n_chat_exclusive(self) -> int:
        """0, as there is no partition."""
        return 0

    @classmethod
    @override
    def architecture(cls) -> str:
        return "jumprelu_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUCrosscoderConfig


class JumpReLUTrainingCrosscoder(TrainingCrosscoder, JumpReLUTrainingSAE):
    """SAELens's `jumprelu` SAE on the stack, with the crosscoder's scores and reconstruction term."""

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*rows d_in"]
    ) -> tuple[Float[Tensor, "*rows d_sae"], Float[Tensor, "*rows d_sae"]]:
        """As SAELens's, with a gradient only where the encoder is trained."""
        pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.trainable_encoder + self.b_enc)
        acts: Any = JumpReLU.apply(pre, self.threshold.to(pre.dtype), self.bandwidth, self.cfg.jumprelu_ste_to_input)
        return self.hook_sae_acts_post(acts), pre

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        with torch.no_grad():
            self.threshold.clamp_(min=0)  # as SAELens does: below 0, negative pre-activations would pass
        output = TrainingCrosscoder.training_forward_pass(self, step_input)
        output.metrics["mean_threshold"] = self.threshold.detach().mean()
        return output

    @override
    def auxiliary_losses(
        self,
        code: Code,
        W_dec: Float[Tensor, "d_sae d_in"],
        step_input: TrainStepInput,
        sae_out: Float[Tensor, "batch d_in"],
    ) -> dict[str, Float[Tensor, ""]]:
        assert isinstance(code, DenseCode)  # as the step is dense
        cfg, norms, threshold = self.cfg, self.score_norms(), self.threshold.to(code.pre.dtype)
        if cfg.jumprelu_sparsity_loss_mode == "tanh":
            penalty = torch.tanh(cfg.jumprelu_tanh_scale * code.acts * norms).sum(dim=-1)
        else:
            active: Any = Step.apply(code.pre, threshold, self.bandwidth, cfg.jumprelu_ste_to_input)
            penalty = active.sum(dim=-1)
            if cfg.target_l0 is not None:
                penalty = 2 / cfg.target_l0 * (penalty - cfg.target_l0).square()
        losses = {"l0_loss": step_input.coefficients["l0"] * penalty.mean()}
        if cfg.pre_act_loss_coefficient is not None:
            dead = step_input.dead_neuron_mask
            losses["pre_act_loss"] = calculate_pre_act_loss(
                cfg.pre_act_loss_coefficient, threshold, code.pre, dead, norms
            )
        return losses

    @override
    def calculate_aux_loss(
        self,
        step_input: TrainStepInput,
        feature_acts: Float[Tensor, "batch d_sae"],
        hidden_pre: Float[Tensor, "batch d_sae"],
        sae_out: Float[Tensor, "batch d_in"],
    ) -> dict[str, Tensor]:
        """SAELens's name for the same, from dense activations."""
        return self.auxiliary_losses(DenseCode(feature_acts, hidden_pre), self.W_dec, step_input, sae_out)

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """The canonical form, in which a threshold is compared with the score."""
        threshold = (self.threshold.clamp(min=0) * self.score_norms()).to(threshold_dtype(self.dtype))
        TrainingCrosscoder.process_state_dict_for_saving_inference(self, state_dict)
        state_dict["threshold"] = threshold
