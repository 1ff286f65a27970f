"""The BatchTopK crosscoder: no penalty on norms, so none of the L1 artifacts."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from sae_lens import BatchTopKTrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.confinement import Confinement
from sae_lens_crosscoder.crosscoders.inference import threshold_dtype
from sae_lens_crosscoder.crosscoders.partition import Partition, PartitionedBatchTopK
from sae_lens_crosscoder.crosscoders.scores import score_norms
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code, DenseCode, SparseCode
from sae_lens_crosscoder.crosscoders.sparse_step.screening import Found, Screening, screening_precision
from sae_lens_crosscoder.crosscoders.sparse_step.two_budgets import TwoBudgetScreening
from sae_lens_crosscoder.crosscoders.training import TrainingCrosscoder

AUTHORS_THRESHOLD_START = 1000
# The threshold's average looks back over a thirtieth of training, until that reaches 1 / topk_threshold_lr steps.
_THRESHOLD_LOOKBACK = 30
# The threshold's state. A partitioned crosscoder has it a second time, with this prefix, for its exclusive latents.
_THRESHOLD_BUFFERS = ("topk_threshold", "n_threshold_samples", "authors_average_begun")
_EXCLUSIVE = "exclusive_"


class NothingSelectedError(ValueError):
    """A training step selected no latent on any token, so nothing can be learned any more."""


class BatchTopKTrainingCrosscoder(TrainingCrosscoder, BatchTopKTrainingSAE):
    """SAELens's `batchtopk` SAE on the stack, selecting by the crosscoder's score."""

    n_threshold_samples: Tensor
    authors_average_begun: Tensor

    def __init__(self, cfg: BatchTopKCrosscoderTrainingConfig, use_error_term: bool = False) -> None:
        super().__init__(cfg, use_error_term)
        # Buffers, so that a resumed run continues exactly. With no samples, the threshold was never estimated.
        self.register_buffer("n_threshold_samples", torch.zeros_like(self.topk_threshold, dtype=torch.int64))
        self.register_buffer("authors_average_begun", torch.zeros_like(self.topk_threshold, dtype=torch.bool))
        self._screening = Screening() if cfg.partition is None else TwoBudgetScreening()
        if cfg.partition is not None:
            for name in _THRESHOLD_BUFFERS:
                self.register_buffer(_EXCLUSIVE + name, getattr(self, name).clone())

    @property
    def partition(self) -> Partition | None:
        """Partition of the latents of this process; None without exclusive latents."""
        partition: Partition | None = self.cfg.partition
        d_sae = self.cfg.d_sae
        return None if partition is None else partition.of_rows(self.collectives.latent_shard * d_sae, d_sae)

    @property
    @override
    def reading(self) -> Confinement | None:
        return self.partition or super().reading

    @property
    @override
    def writing(self) -> Confinement | None:
        return self.partition or super().writing

    @override
    def get_activation_fn(self) -> Callable[[Tensor], Tensor]:
        """SAELens's selection; for exclusive and shared latents apart if there is a partition."""
        cfg = self.cfg
        if cfg.partition is None:
            return super().get_activation_fn()
        return PartitionedBatchTopK(cfg.k, cfg.budgets, cfg.partition.n_exclusive)

    @override
    def encode_with_hidden_pre(
        self, x: Float[Tensor, "*rows d_in"]
    ) -> tuple[Float[Tensor, "*rows d_sae"], Float[Tensor, "*rows d_sae"]]:
        """Raw activations f of the selected latents (0 elsewhere), and the pre-activations.

        The selection carries no gradient, and none flows through s_j.
        """
        hidden_pre = self.hook_sae_acts_pre(self.process_sae_in(x) @ self.trainable_encoder + self.b_enc)
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
            code = SparseCode(x, self.trainable_encoder, self.b_enc, *self._select(x, norms, k))
        self._follow_smallest_scores(code, norms, step)
        return code

    def _select(self, x: Float[Tensor, "batch d_in"], norms: Float[Tensor, " d_sae"], k: float | int) -> Found:
        precision = screening_precision(self.cfg.screening, x.device)
        n_tokens = self.collectives.n_data * len(x)
        weights = self.W_enc, self.b_enc, norms
        if isinstance(self._screening, Screening):
            return self._screening.select(x, *weights, int(k * n_tokens), precision, self.collectives)
        partition = self.partition
        assert partition is not None  # as the screening has two budgets
        n_keep = self.cfg.budgets(k, n_tokens)
        return self._screening.select(x, *weights, partition.n_exclusive, n_keep, precision, self.collectives)

    @override
    def carried_state(self) -> dict[str, float | None]:
        return self._screening.state_dict()

    @override
    def load_carried_state(self, state: dict[str, float | None]) -> None:
        super().load_carried_state(state)
        self._screening.load_state_dict(state)

    def forget_scores(self) -> None:
        """Begin the threshold's average anew, for a dictionary whose scores are others."""
        for name in _THRESHOLD_BUFFERS:
            getattr(self, name).zero_()
        self._screening = Screening()

    @override
    def auxiliary_losses(
        self,
        code: Code,
        W_dec: Float[Tensor, "d_sae d_in"],
        step_input: TrainStepInput,
        sae_out: Float[Tensor, "batch d_in"],
    ) -> dict[str, Float[Tensor, ""]]:
        dead_mask = step_input.dead_neuron_mask
        dead = None if dead_mask is None else dead_mask.nonzero().squeeze(-1)
        n_dead = 0 if dead is None else self.collectives.sum_int(len(dead), "latents")
        if dead is None or n_dead == 0 or self.cfg.aux_loss_coefficient == 0:
            return {"auxiliary_reconstruction_loss": sae_out.new_zeros(())}
        revived = code.pre_of(dead), code.rows_of(W_dec, dead)
        return {"auxiliary_reconstruction_loss": self._revival_loss(step_input.sae_in, sae_out, *revived, n_dead)}

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        output = TrainingCrosscoder.training_forward_pass(self, step_input)
        output.metrics |= {"topk_threshold": self.topk_threshold, "k": float(self.activation_fn.k)}  # pyright: ignore[reportFunctionMemberAccess]
        if self.cfg.partition is not None:
            name = f"{_EXCLUSIVE}topk_threshold"
            output.metrics[name] = getattr(self, name)
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
    def _follow_smallest_scores(self, code: Code, norms: Float[Tensor, " d_sae"], step: int) -> None:
        """Update the threshold's average; with a partition, one for shared and one for exclusive latents."""
        partition = self.partition
        if partition is None:
            selected = [self._follow_smallest_score(self.scores_above_threshold(code, norms), step)]
        else:
            selected = []
            exclusive = partition.is_exclusive(len(norms)).to(norms.device)
            for prefix, members in (("", ~exclusive), (_EXCLUSIVE, exclusive)):
                scores = code.scores(norms * members)  # selected scores are positive, so zeros are the other group's
                selected.append(self._follow_smallest_score(scores[scores > 0], step, prefix))
        if not any(selected):
            raise NothingSelectedError(
                f"Step {step} selected no latent: no token has a positive score. Check that the activations are not "
                "all zero, and lower the learning rate if earlier steps did select some."
            )

    def scores_above_threshold(self, code: Code, norms: Float[Tensor, " d_sae"]) -> Float[Tensor, " pairs"]:
        """Positive scores that the inference threshold should keep: the selected ones."""
        return code.scores(norms)

    def _follow_smallest_score(self, scores: Float[Tensor, " pairs"], step: int, prefix: str = "") -> bool:
        """Update one average; False if nothing was selected."""
        smallest = self.collectives.min(scores)
        if smallest is None:
            return False
        threshold, n_samples, begun = (getattr(self, prefix + name) for name in _THRESHOLD_BUFFERS)
        rate = max(self.cfg.topk_threshold_lr, 1 / (1 + n_samples.item() / _THRESHOLD_LOOKBACK))
        if self.cfg.threshold_rule == "authors" and step > AUTHORS_THRESHOLD_START:
            rate = self.cfg.topk_threshold_lr if begun else 1.0
            begun.fill_(True)
        setattr(self, f"{prefix}topk_threshold", (1 - rate) * threshold + rate * smallest.to(threshold.dtype))
        n_samples += 1
        return True

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """The canonical form, with the averaged smallest score as every latent's threshold."""
        threshold, n_samples, begun = (state_dict.pop(name).item() for name in _THRESHOLD_BUFFERS)
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
        state_dict["threshold"] = torch.full_like(self.b_enc, threshold, dtype=threshold_dtype(self.dtype))
        if (partition := self.partition) is not None:
            exclusive, n_samples, _ = (state_dict.pop(_EXCLUSIVE + name).item() for name in _THRESHOLD_BUFFERS)
            if n_samples == 0:
                warnings.warn(
                    "No exclusive latent was ever selected, so their threshold is that of shared latents.", stacklevel=2
                )
            state_dict["threshold"][: partition.n_exclusive] = exclusive if n_samples else threshold
