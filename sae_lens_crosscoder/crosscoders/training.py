"""Base of all crosscoders in training."""

from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sae_lens import TrainingSAE
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder.activations.scales import AUTO_SCALING_ABOVE, MeanNorms
from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales, fold_scores
from sae_lens_crosscoder.crosscoders.causality import WeakCausality
from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives
from sae_lens_crosscoder.crosscoders.confinement import Confinement, confine_gradient
from sae_lens_crosscoder.crosscoders.folder import save_with_checksums
from sae_lens_crosscoder.crosscoders.initialisation import geometric_median, initial_decoder
from sae_lens_crosscoder.crosscoders.scores import score_norms
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code, DenseCode, SparseCode
from sae_lens_crosscoder.crosscoders.views import CrosscoderViews
from sae_lens_crosscoder.stacking import StackedLayout


def reconstruction_loss(error: Float[Tensor, "*rows d_in"], layout: StackedLayout, kind: str) -> Float[Tensor, ""]:
    """The reconstruction term of the loss, averaged over tokens.

    >>> error = torch.tensor([[3.0, 4.0]])  # the base is off by 3, the chat model by 4
    >>> layout = StackedLayout((1, 1))
    >>> reconstruction_loss(error, layout, "l2_norm").item(), reconstruction_loss(error, layout, "mse").item()
    (3.5, 25.0)
    """
    if kind == "l2_norm":
        return layout.norms(error).mean()
    return error.square().sum(dim=-1).mean()


class TrainingCrosscoder(CrosscoderViews, TrainingSAE[Any]):
    """Raw activations in, raw reconstructions out; weights, loss and scores live in the scaled space."""

    input_scales: Tensor
    has_seen_data: Tensor
    collectives: Collectives = SINGLE_PROCESS
    """The processes that train this crosscoder, each with its own latents or tokens."""

    @override
    def initialize_weights(self) -> None:
        """Paired directions and a transposed encoder; the rest waits for the first batch."""
        cfg, layout = self.cfg, self.layout
        assert cfg.decoder_init_norm is not None  # checked by the config
        W_dec = initial_decoder(layout, cfg.d_sae, cfg.decoder_init_norm, cfg.initialisation, self.dtype, self.device)
        self.W_dec = nn.Parameter(W_dec)
        # A view of (d_sae, d_in) memory: a latent's weights lie together, as its gradient does.
        self.W_enc = nn.Parameter(W_dec.clone().T)
        if (reading := self.reading) is not None:
            reading.clear(self.W_enc.data.T, layout)
        if (writing := self.writing) is not None:
            writing.clear(self.W_dec.data, layout)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae, dtype=self.dtype, device=self.device))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in, dtype=self.dtype, device=self.device))
        # Buffers, so that checkpoints restore them.
        self.register_buffer("input_scales", self.activation_scales)
        self.register_buffer("has_seen_data", torch.tensor(False, device=self.device))
        self._first_batch_is_past = False

    @override
    def _setup_activation_normalization(self) -> None:
        """SAELens's seam for scaling what comes in and what goes out."""

        def scale(x: Tensor) -> Tensor:
            return x if self._is_unscaled else x * self.layout.expand(self.input_scales).to(x.dtype)

        def unscale(x: Tensor) -> Tensor:
            return x if self._is_unscaled else x / self.layout.expand(self.input_scales).to(x.dtype)

        self.run_time_activation_norm_fn_in = scale
        self.run_time_activation_norm_fn_out = unscale

    @property
    def _is_unscaled(self) -> bool:
        """True if all factors are known to be 1; asking a GPU would wait for it."""
        return self.input_scales.device.type == "cpu" and set(self.input_scales.tolist()) == {1.0}

    def score_norms(self) -> Float[Tensor, " d_sae"]:
        """s_j, with gradient."""
        return score_norms(self.W_dec, self.layout, self.cfg.score)

    @override
    @torch.no_grad()
    def get_W_dec_norm(self) -> Float[Tensor, " d_sae"]:
        """s_j, which SAELens's folds then use in place of the stacked row's norm."""
        return self.score_norms()

    @property
    def wants_activation_scales(self) -> bool:
        """True if per-model factors are configured and not estimated yet."""
        return (
            self.cfg.activation_scaling != "none"
            and self.cfg.activation_scales is None
            and not bool(self.has_seen_data)
        )

    @torch.no_grad()
    def scale_activations(self, mean_norms: MeanNorms) -> None:
        """Fix the per-model factors c_m, before the first step; all 1 if `auto` needs none."""
        scales = mean_norms.scales()
        if self.cfg.activation_scaling == "auto" and scales.max() <= AUTO_SCALING_ABOVE * scales.min():
            scales = torch.ones_like(scales)
        self.input_scales.copy_(scales)
        self.cfg.activation_scales = tuple(self.input_scales.tolist())

    @torch.no_grad()
    def start_from(self, activations: Float[Tensor, "batch d_in"]) -> None:
        """Set what depends on data from the first batch: activation scales (unless already fixed) and decoder biases.

        Does nothing on a crosscoder that has seen data, such as one restored from a checkpoint.
        """
        if self._first_batch_is_past:
            return
        self._first_batch_is_past = True
        if bool(self.has_seen_data):
            return
        activations = self.collectives.all_gather(activations, "data")
        if self.wants_activation_scales:
            mean_norms = MeanNorms(self.layout)
            mean_norms.add(activations)
            self.scale_activations(mean_norms)
        if self.cfg.decoder_bias_init == "geometric_median":
            scaled = self.run_time_activation_norm_fn_in(activations.to(self.dtype))
            self.b_dec.data = self.layout.stack([geometric_median(part) for part in self.layout.split(scaled)])
        self.has_seen_data.fill_(True)

    @property
    def reading(self) -> Confinement | None:
        """The encoder weights of this process's latents that must stay 0; None for none."""
        causality = self._weak_causality()
        return None if causality is None else causality.reading

    @property
    def writing(self) -> Confinement | None:
        """The decoder weights of this process's latents that must stay 0; None for none."""
        causality = self._weak_causality()
        return None if causality is None else causality.writing

    def _weak_causality(self) -> WeakCausality | None:
        return self.cfg.weak_causality(self.collectives.latent_shard, self.collectives.n_latents)

    def trainable_rows(
        self, rows: Float[Tensor, "d_sae d_in"], confinement: Confinement | None
    ) -> Float[Tensor, "d_sae d_in"]:
        """Return encoder or decoder rows with gradient wherever training may change them."""
        return rows if confinement is None else confine_gradient(rows, confinement, self.layout)

    @property
    def trainable_encoder(self) -> Float[Tensor, "d_in d_sae"]:
        """The encoder, with gradient wherever training may change it."""
        return self.trainable_rows(self.W_enc.T, self.reading).T

    def encode_batch(self, sae_in: Float[Tensor, "batch d_in"], step: int) -> Code:
        """A training batch's activations, with gradient; densely unless an architecture knows better."""
        return DenseCode(*self.encode_with_hidden_pre(sae_in))

    def auxiliary_losses(
        self,
        code: Code,
        W_dec: Float[Tensor, "d_sae d_in"],
        step_input: TrainStepInput,
        sae_out: Float[Tensor, "batch d_in"],
    ) -> dict[str, Float[Tensor, ""]]:
        """Loss terms beside the reconstruction term, by name; `W_dec` are the decoder's `trainable_rows`."""
        raise NotImplementedError

    @override
    def training_forward_pass(self, step_input: TrainStepInput) -> TrainStepOutput:
        """Loss and activations of one batch; the losses in `losses` add up to `loss`."""
        self.start_from(step_input.sae_in)
        code = self.encode_batch(step_input.sae_in, step_input.n_training_steps)
        W_dec = self.trainable_rows(self.W_dec, self.writing)
        sae_out, loss = self._reconstruct(code, W_dec, step_input.sae_in)
        losses = {"reconstruction_loss": loss} | self.auxiliary_losses(code, W_dec, step_input, sae_out)
        metrics: dict[str, Tensor | float | int | Callable[[], Tensor | float | int]] = {}
        feature_acts = code.feature_acts()
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=feature_acts,  # which nobody reads, and which the sparse step never has as a whole
            loss=reduce(torch.add, losses.values()),
            losses=losses,
            metrics=metrics,
        )

    def _reconstruct(
        self, code: Code, W_dec: Float[Tensor, "d_sae d_in"], sae_in: Float[Tensor, "batch d_in"]
    ) -> tuple[Float[Tensor, "batch d_in"], Float[Tensor, ""]]:
        """The raw reconstruction, and its loss."""
        kind = self.cfg.reconstruction_loss
        if isinstance(code, SparseCode) and self.collectives.n_latents == 1 and not self.hook_sae_recons.has_hooks():
            target = self.run_time_activation_norm_fn_in(sae_in.to(self.dtype))
            decoded, loss = code.reconstruct(W_dec, self.b_dec, target, self.layout, kind)
            return self.run_time_activation_norm_fn_out(decoded), loss
        decoded = self.collectives.sum_over_latents(code.decode(W_dec)) + self.b_dec
        sae_out = self.run_time_activation_norm_fn_out(self.hook_sae_recons(decoded))
        error = self.run_time_activation_norm_fn_in(sae_in.to(self.dtype) - sae_out)
        return sae_out, reconstruction_loss(error, self.layout, kind)

    def carried_state(self) -> dict[str, float | None]:
        """State that a step leaves for the next besides weights and buffers."""
        return {}

    def load_carried_state(self, state: dict[str, float | None]) -> None:
        """Load the state that a step left."""
        self._first_batch_is_past = False

    @override
    def decode(self, feature_acts: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_in"]:
        """Reconstruction of the raw activations from raw (unscored) latent activations f."""
        return self.run_time_activation_norm_fn_out(self.hook_sae_recons(feature_acts @ self.W_dec + self.b_dec))

    @override
    def process_state_dict_for_loading(self, state_dict: dict[str, Any]) -> None:
        super().process_state_dict_for_loading(state_dict)
        if (reading := self.reading) is not None:
            reading.validate(state_dict["W_enc"].T, self.layout, "W_enc")
        if (writing := self.writing) is not None:
            writing.validate(state_dict["W_dec"], self.layout, "W_dec")

    @override
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()  # safetensors keeps no views

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """SAELens's folder of the inference crosscoder, with checksums in its config."""
        return save_with_checksums(super().save_inference_model, path)

    @override
    @torch.no_grad()
    def fold_activation_norm_scaling_factor(self, scaling_factor: float) -> None:
        """Take over the one factor by which SAELens's trainer multiplied the whole stack.

        It joins the per-model factors instead of entering the weights, so scores and the threshold keep their units
        and the canonical fold applies it in the right order.
        """
        self.input_scales.mul_(scaling_factor)
        self.cfg.normalize_activations = "none"

    @override
    @torch.no_grad()
    def process_state_dict_for_saving_inference(self, state_dict: dict[str, Any]) -> None:
        """Turn the training state into the canonical saved form: scores first, then the activation scales."""
        scales = tuple(self.input_scales.tolist())
        self.cfg.activation_scales = scales if any(scale != 1 for scale in scales) else None
        weights = Weights(*(state_dict[name] for name in Weights._fields))
        folded = fold_activation_scales(fold_scores(weights, self.score_norms()), self.layout, self.input_scales)
        for name in ("input_scales", "has_seen_data"):
            del state_dict[name]
        state_dict.update({name: tensor.contiguous() for name, tensor in folded._asdict().items()})

    @override
    @torch.no_grad()
    def log_histograms(self) -> dict[str, NDArray[Any]]:
        """Decoder norms per model, for W&B."""
        norms = self.layout.norms(self.W_dec.detach().float()).cpu().numpy().astype(np.float32)
        return {f"weights/W_dec_norms_{name}": norms[:, m] for m, name in enumerate(self.layout.names)}
