"""The L1 crosscoder: the paper's baseline, whose chat-only latents may be artifacts."""

import warnings
from dataclasses import dataclass

import torch
from jaxtyping import Float
from sae_lens import SAEConfig, StandardTrainingSAE, StandardTrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.inference import ReLUCrosscoderConfig
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code, DenseCode, SparseCode
from sae_lens_crosscoder.crosscoders.sparse_step.screening import pairs_above, screening_precision
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder
from sae_lens_crosscoder.crosscoders.training_config import CrosscoderTrainingConfigBase
from sae_lens_crosscoder.storage.field_types import validate_minimums

# Share of active pairs below which sums over them beat matrix products.
_SPARSE_BELOW = 0.03


@dataclass
class L1CrosscoderTrainingConfig(CrosscoderTrainingConfigBase, StandardTrainingSAEConfig):
    """Trains with the penalty `mu * mean_batch sum_j f_j s_j`. Defaults are the paper's.

    >>> L1CrosscoderTrainingConfig(d_model=64, d_sae=256).d_models
    (64, 64)
    """

    l1_coefficient: float = 4.1e-2
    """mu, the weight of the penalty. The paper trains its first epoch with 4.0e-2 and its second with 4.1e-2."""
    l1_warm_up_steps: int = 0
    """Steps over which mu rises linearly from 0."""
    lp_norm: float = 1.0
    """Must stay 1: the penalty is the L1 norm of the scores."""
    decoder_init_norm: float | None = 0.05

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lp_norm != 1.0:
            raise ValueError(f"lp_norm={self.lp_norm}: the crosscoder's penalty is an L1 norm; leave lp_norm at 1.")
        if self.l1_coefficient < 0:
            raise ValueError(f"l1_coefficient={self.l1_coefficient} must not be negative; the paper uses 4.1e-2.")
        validate_minimums(self, l1_warm_up_steps=0)

    @override
    def validate_run(self, n_steps: int, batch_size: int) -> None:
        if self.l1_warm_up_steps > n_steps:
            warnings.warn(
                f"l1_warm_up_steps={self.l1_warm_up_steps} exceeds the {n_steps} steps of this run: l1_coefficient "
                "will not be reached. Shorten it, train on more tokens, or resume this run as a longer one.",
                stacklevel=2,
            )

    @classmethod
    @override
    def architecture(cls) -> str:
        return "crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return ReLUCrosscoderConfig


class L1TrainingCrosscoder(TrainingCrosscoder, StandardTrainingSAE):
    """SAELens's `standard` SAE on the stack, with the crosscoder's penalty and reconstruction term."""

    # Until it is known to be small, the share of pairs that are on is taken to be all.
    _frac_active = 1.0

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*rows d_in"]
    ) -> tuple[Float[Tensor, "*rows d_sae"], Float[Tensor, "*rows d_sae"]]:
        """SAELens's, with a gradient for those encoder weights alone that training may change."""
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.trainable_encoder + self.b_enc)
        return self.hook_sae_acts_post(self.activation_fn(hidden_pre)), hidden_pre

    @override
    def encode_batch(self, sae_in: Float[Tensor, "batch d_in"], step: int) -> Code:
        """Sparsely once few enough latents are on, which at the start half of them are."""
        if self.cfg.training_step == "sparse" and self._frac_active < _SPARSE_BELOW:
            x = self.process_sae_in(sae_in)
            precision = screening_precision(self.cfg.screening, x.device)
            found = pairs_above(x, self.W_enc, self.b_enc, torch.zeros_like(self.b_enc), precision)
            code = SparseCode(x, self.trainable_encoder, self.b_enc, *found)
            n_active = len(found.pairs)
        else:
            code = DenseCode(*self.encode_with_hidden_pre(sae_in))
            n_active = int((code.acts > 0).sum())
        self._frac_active = n_active / (len(sae_in) * self.cfg.d_sae)
        return code

    @override
    def carried_state(self) -> dict[str, float | None]:
        return {"frac_active": self._frac_active}

    @override
    def load_carried_state(self, state: dict[str, float | None]) -> None:
        super().load_carried_state(state)
        assert state["frac_active"] is not None
        self._frac_active = state["frac_active"]

    @override
    def auxiliary_losses(
        self,
        code: Code,
        W_dec: Float[Tensor, "d_sae d_in"],
        step_input: TrainStepInput,
        sae_out: Float[Tensor, "batch d_in"],
    ) -> dict[str, Float[Tensor, ""]]:
        """The penalty. Gradients flow through s_j: that is what shrinks a weak latent's base norm to 0."""
        mean_score = self.collectives.sum_over_latents(code.mean_score(self.score_norms()))
        return {"l1_loss": step_input.coefficients["l1"] * mean_score}

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
