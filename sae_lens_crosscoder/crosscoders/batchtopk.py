"""The BatchTopK crosscoder: no penalty on norms, so none of the L1 artifacts."""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig, SAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.inference import JumpReLUCrosscoderConfig
from sae_lens_crosscoder.crosscoders.scores import score_norms
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code, DenseCode, SparseCode
from sae_lens_crosscoder.crosscoders.sparse_step.screening import Screening, screening_precision
from sae_lens_crosscoder.crosscoders.training import CrosscoderTrainingConfigBase, TrainingCrosscoder

AUTHORS_THRESHOLD_START = 1000
# The threshold's average looks back over a thirtieth of training, until that reaches 1 / topk_threshold_lr steps.
_THRESHOLD_LOOKBACK = 30


@dataclass
class BatchTopKCrosscoderTrainingConfig(CrosscoderTrainingConfigBase, BatchTopKTrainingSAEConfig):
    """Keeps the `k` largest scores per token on average over the batch. Defaults are the paper's.

    >>> BatchTopKCrosscoderTrainingConfig(d_model=2304, d_sae=73_728, k=100).d_in
    4608
    """

    k: float | int = 100  # pyright: ignore[reportIncompatibleVariableOverride]
    """Latents kept per token, on average over the batch."""
    k_max: float | int | None = None
    """With `k_anneal_steps`: the number of latents kept at the first step."""
    k_anneal_steps: int = 0
    """Steps over which k falls linearly from `k_max` to exactly `k`; 0 for a constant k."""
    aux_loss_coefficient: float = 1 / 32
    """alpha, the weight of the loss that revives dead latents."""
    threshold_rule: Literal["tracking", "authors"] = "tracking"
    """Rule of the inference threshold, an average of the smallest selected scores. `tracking` averages over the last
    thirtieth of training, so that it is right after short runs too; after 30 / `topk_threshold_lr` steps it is the
    paper's average. `authors` is the paper's code: `tracking` until step 1000, then a new average that starts from one
    sample."""
    topk_threshold_lr: float = 0.001
    """Weight of the newest batch in that average, in the long run."""
    decoder_bias_init: Literal["geometric_median", "zeros"] = "geometric_median"
    gradient_clip_norm: float | None = 1.0

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.k <= self.d_sae:
            raise ValueError(f"k={self.k} must be above 0 and at most d_sae={self.d_sae}, the number of latents.")
        if (self.k_max is None) != (self.k_anneal_steps == 0):
            raise ValueError(
                f"k_max={self.k_max} and k_anneal_steps={self.k_anneal_steps} belong together: set both or neither."
            )
        if self.k_max is not None and not self.k <= self.k_max <= self.d_sae:
            raise ValueError(f"k_max={self.k_max} must lie between k={self.k} and d_sae={self.d_sae}.")
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

    @classmethod
    @override
    def architecture(cls) -> str:
        return "batchtopk_crosscoder"

    @override
    def get_inference_config_class(self) -> type[SAEConfig]:
        return JumpReLUCrosscoderConfig


class BatchTopKTrainingCrosscoder(TrainingCrosscoder, BatchTopKTrainingSAE):
    """SAELens's `batchtopk` SAE on the stack, selecting by the crosscoder's score."""

    n_threshold_samples: Tensor
    authors_average_begun: Tensor

    def __init__(self, cfg: BatchTopKCrosscoderTrainingConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        # Buffers, so that a resumed run continues exactly. With no samples, the threshold was never estimated.
        self.register_buffer("n_threshold_samples", torch.zeros_like(self.topk_threshold, dtype=torch.int64))
        self.register_buffer("authors_average_begun", torch.zeros_like(self.topk_threshold, dtype=torch.bool))
        self._screening = Screening()

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*rows d_in"]
    ) -> tuple[Float[Tensor, "*rows d_sae"], Float[Tensor, "*rows d_sae"]]:
        """Raw activations f of the selected latents (0 elsewhere), and the pre-activations.

        The selection carries no gradient, and none flows through s_j.
        """
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.W_enc + self.b_enc)
        acts = hidden_pre.relu()
        with torch.no_grad():
            selected = self.activation_fn(acts * self.score_norms()) > 0
        return self.hook_sae_acts_post(acts * selected), hidden_pre

    @override
    def encode_batch(self, sae_in: Float[Tensor, "batch d_in"], step: int) -> Code:
        """The batch's largest scores at the k of this step; the selection carries no gradient."""
        k = self.activation_fn.k = self.k_at(step)  # pyright: ignore[reportFunctionMemberAccess]
        norms = self.score_norms().detach()
        if self.cfg.training_step == "dense":
            code = DenseCode(*self.encode_with_hidden_pre(sae_in))
        else:
            x = self.process_sae_in(sae_in)
            precision = screening_precision(self.cfg.screening, x.device)
            n_keep = int(k * (self.collectives.n_data * len(x)))
            found = self._screening.select(x, self.W_enc, self.b_enc, norms, n_keep, precision, self.collectives)
            code = SparseCode(x, self.W_enc, self.b_enc, *found)
        self._follow_smallest_score(code.scores(norms), step)
        return code

    @override
    def carried_state(self) -> dict[str, float | None]:
        return self._screening.state_dict()

    @override
    def load_carried_state(self, state: dict[str, float | None]) -> None:
        super().load_carried_state(state)
        self._screening.load_state_dict(state)

    @override
    def auxiliary_losses(
        self, code: Code, step_input: TrainStepInput, sae_out: Float[Tensor, "batch d_in"]
    ) -> dict[str, Float[Tensor, ""]]:
        dead_mask = step_input.dead_neuron_mask
        dead = None if dead_mask is None else dead_mask.nonzero().squeeze(-1)
        n_dead = 0 if dead is None else self.collectives.sum_int(len(dead), "latents")
        if dead is None or n_dead == 0 or self.cfg.aux_loss_coefficient == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        revived = code.pre_of(dead), code.rows_of(self.W_dec, dead)
        return {"auxiliary_reconstruction_loss": self._revival_loss(step_input.sae_in, sae_out, *revived, n_dead)}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = TrainingCrosscoder.training_forward_pass(self, step_input)
        output.metrics |= {"topk_threshold": self.topk_threshold, "k": float(self.activation_fn.k)}  # pyright: ignore[reportFunctionMemberAccess]
        return output

    def k_at(self, step: int) -> float | int:
        """The k in force at a training step, counted from 0."""
        cfg = self.cfg
        if cfg.k_max is None or step >= cfg.k_anneal_steps:
            return cfg.k
        return cfg.k_max + (cfg.k - cfg.k_max) * step / cfg.k_anneal_steps

    @override
    def calculate_topk_aux_loss(
        self,
        sae_in: Float[Tensor, "batch d_in"],
        sae_out: Float[Tensor, "batch d_in"],
        hidden_pre: Float[Tensor, "batch d_sae"],
        dead_neuron_mask: Bool[Tensor, " d_sae"] | None,
    ) -> Float[Tensor, ""]:
        """SAELens's name for the revival loss, from all pre-activations."""
        if dead_neuron_mask is None or self.cfg.aux_loss_coefficient == 0 or not dead_neuron_mask.any():
            return sae_out.new_zeros(())
        dead = dead_neuron_mask.nonzero().squeeze(-1)
        return self._revival_loss(sae_in, sae_out, hidden_pre[:, dead], self.W_dec[dead], len(dead))

    def _revival_loss(
        self,
        sae_in: Float[Tensor, "batch d_in"],
        sae_out: Float[Tensor, "batch d_in"],
        hidden_pre: Float[Tensor, "batch dead"],
        W_dec: Float[Tensor, "dead d_in"],
        n_dead: int,
    ) -> Float[Tensor, ""]:
        """alpha times the share of the residual's variance that the best of all `n_dead` leave unexplained."""
        residual = self.run_time_activation_norm_fn_in(sae_in.to(self.dtype) - sae_out).detach()
        # SAELens takes half of the stack, which is twice what one model's width suggests.
        k_aux = min(self.layout.d_models[0] // 2, n_dead)
        acts = hidden_pre.relu()
        norms = score_norms(W_dec.detach(), self.layout, self.cfg.score)
        scores, best = (acts.detach() * norms).topk(min(k_aux, len(W_dec)), dim=-1, sorted=False)
        best_acts = acts.gather(-1, best) * self.collectives.top_k_mask(scores, k_aux)
        revived = self.collectives.sum_over_latents(torch.zeros_like(acts).scatter(-1, best, best_acts) @ W_dec)
        unexplained = (residual - revived).square().sum(dim=-1).mean()
        mean = self.collectives.mean(residual.mean(dim=0))
        total = self.collectives.mean((residual - mean).square().sum(dim=-1).mean())
        # A safe divisor, because the gradient of the branch not taken would be nan as well.
        ratio = unexplained / torch.where(total > 0, total, torch.ones_like(total))
        return self.cfg.aux_loss_coefficient * torch.where(total > 0, ratio, torch.zeros_like(ratio))

    @torch.no_grad()
    def _follow_smallest_score(self, scores: Float[Tensor, " pairs"], step: int) -> None:
        smallest = self.collectives.min(scores)
        if smallest is None:
            return
        smallest = smallest.to(self.topk_threshold.dtype)
        rate = max(self.cfg.topk_threshold_lr, 1 / (1 + self.n_threshold_samples.item() / _THRESHOLD_LOOKBACK))
        if self.cfg.threshold_rule == "authors" and step > AUTHORS_THRESHOLD_START:
            rate = self.cfg.topk_threshold_lr if self.authors_average_begun else 1.0
            self.authors_average_begun.fill_(True)
        self.topk_threshold = (1 - rate) * self.topk_threshold + rate * smallest
        self.n_threshold_samples += 1

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """The canonical form, with the averaged smallest score as every latent's threshold."""
        names = ("topk_threshold", "n_threshold_samples", "authors_average_begun")
        threshold, n_samples, begun = (state_dict.pop(name).item() for name in names)
        if n_samples == 0:
            raise ValueError(
                "The BatchTopK threshold was never estimated, because nothing was trained: an inference crosscoder "
                "would keep every positive latent. Train first, or keep the training form with save_model(path)."
            )
        if self.cfg.threshold_rule == "authors" and not begun:
            warnings.warn(
                f"threshold_rule='authors' starts after step {AUTHORS_THRESHOLD_START}, and training was shorter: "
                "the saved threshold is that of 'tracking'.",
                stacklevel=2,
            )
        TrainingCrosscoder.process_state_dict_for_saving_inference(self, state_dict)
        state_dict["threshold"] = torch.full_like(self.b_enc, threshold)
