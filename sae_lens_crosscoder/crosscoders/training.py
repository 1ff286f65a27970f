"""Base of all crosscoders in training."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from sae_lens import TrainingSAE, TrainingSAEConfig
from sae_lens.saes.sae import TrainStepInput, TrainStepOutput
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder.activations.scales import AUTO_SCALING_ABOVE, MeanNorms
from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales, fold_scores
from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS, Collectives
from sae_lens_crosscoder.crosscoders.config import CrosscoderConfigBase
from sae_lens_crosscoder.crosscoders.folder import write_checksums
from sae_lens_crosscoder.crosscoders.initialisation import Initialisation, geometric_median, initial_decoder
from sae_lens_crosscoder.crosscoders.scores import Score, score_norms
from sae_lens_crosscoder.crosscoders.sparse_step.codes import Code, DenseCode
from sae_lens_crosscoder.crosscoders.sparse_step.screening import ScreeningChoice
from sae_lens_crosscoder.crosscoders.views import CrosscoderViews
from sae_lens_crosscoder.stacking import StackedLayout

ReconstructionLoss = Literal["l2_norm", "mse"]
ActivationScaling = Literal["none", "per_model", "auto"]
TRAINING_DTYPES = ("float32", "bfloat16", "float64")


@dataclass(kw_only=True)
class CrosscoderTrainingConfigBase(CrosscoderConfigBase, TrainingSAEConfig):
    """Training fields that do not depend on how sparsity is reached."""

    has_sparse_step: ClassVar[bool] = True
    """False for architectures that train with `training_step="dense"` only, and so in one process."""
    has_latent_shards: ClassVar[bool] = True
    """False for architectures whose latents cannot be divided between processes."""

    decoder_init_norm: float | None = 1.0
    """Norm of each model's half of a decoder row at the start."""
    initialisation: Initialisation = "paired"
    """`paired`: all models start with the same directions; `independent`: each with its own."""
    decoder_bias_init: Literal["geometric_median", "zeros"] = "zeros"
    """Initial decoder biases; the geometric median is that of the first batch, per model."""
    reconstruction_loss: ReconstructionLoss = "l2_norm"
    """`l2_norm`: the paper's unsquared error, averaged over models; `mse`: squared, summed over models."""
    activation_scaling: ActivationScaling = "none"
    """`per_model` multiplies each model's activations by one factor so that their mean norm is sqrt(d_model). `auto`
    does so only if one model's mean norm per sqrt(d_model) is more than 1.25 times another's."""
    training_step: Literal["sparse", "dense"] = "sparse"
    """`sparse` computes only what active pairs of token and latent need; `dense`, the reference, plain products."""
    screening: ScreeningChoice = "auto"
    """Precision of the one product over all pairs, from which the sparse step learns which pairs to compute. Either way
    the result is that of the weights' own precision; `auto` is bfloat16 where the hardware multiplies it."""
    gradient_clip_norm: float | None = None
    """Largest gradient norm over all parameters, None for no clipping. `CrosscoderTrainer` reads it."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype.removeprefix("torch.") not in TRAINING_DTYPES:
            raise ValueError(
                f"dtype={self.dtype!r} cannot be trained: Adam's second moments need the range of one of "
                f"{TRAINING_DTYPES}. Use 'bfloat16' to save memory."
            )
        for name, options in (
            ("initialisation", get_args(Initialisation)),
            ("decoder_bias_init", ("geometric_median", "zeros")),
            ("reconstruction_loss", get_args(ReconstructionLoss)),
            ("activation_scaling", get_args(ActivationScaling)),
            ("training_step", ("sparse", "dense")),
            ("screening", get_args(ScreeningChoice)),
        ):
            if getattr(self, name) not in options:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {options}.")
        if self.training_step == "sparse" and not self.has_sparse_step:
            raise ValueError(
                f"training_step='sparse' is not available for a {self.architecture()}, whose step needs every "
                "pre-activation. Leave it 'dense'."
            )
        if self.decoder_init_norm is None or self.decoder_init_norm <= 0:
            raise ValueError(f"decoder_init_norm={self.decoder_init_norm} must be a positive number.")
        if self.gradient_clip_norm is not None and self.gradient_clip_norm <= 0:
            raise ValueError(f"gradient_clip_norm={self.gradient_clip_norm} must be positive, or None.")

    def validate_run(self, n_steps: int, batch_size: int) -> None:
        """Raise a ValueError, or warn, about settings that do not fit `n_steps` steps of `batch_size` tokens."""

    # SAELens copies every field of the inference config from here.

    @property
    def score_norm(self) -> Score:
        return self.score

    @property
    def activation_means(self) -> None:
        return None


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
            return x * self.layout.expand(self.input_scales).to(x.dtype)

        def unscale(x: Tensor) -> Tensor:
            return x / self.layout.expand(self.input_scales).to(x.dtype)

        self.run_time_activation_norm_fn_in = scale
        self.run_time_activation_norm_fn_out = unscale

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

    def trainable_rows(self, rows: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """Return encoder or decoder rows with gradient wherever training may change them: by default everywhere."""
        return rows

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
        W_dec = self.trainable_rows(self.W_dec)
        decoded = self.collectives.sum_over_latents(code.decode(W_dec)) + self.b_dec
        sae_out = self.run_time_activation_norm_fn_out(self.hook_sae_recons(decoded))
        error = self.run_time_activation_norm_fn_in(step_input.sae_in.to(self.dtype) - sae_out)
        losses = {"reconstruction_loss": reconstruction_loss(error, self.layout, self.cfg.reconstruction_loss)}
        losses |= self.auxiliary_losses(code, W_dec, step_input, sae_out)
        metrics: dict[str, Tensor | float | int | Callable[[], Tensor | float | int]] = {}
        feature_acts = code.feature_acts()
        return TrainStepOutput(
            sae_in=step_input.sae_in,
            sae_out=sae_out,
            feature_acts=feature_acts,
            hidden_pre=feature_acts,  # which nobody reads, and which the sparse step never has as a whole
            loss=torch.stack(list(losses.values())).sum(),
            losses=losses,
            metrics=metrics,
        )

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
    def process_state_dict_for_saving(self, state_dict: dict[str, Any]) -> None:
        state_dict["W_enc"] = state_dict["W_enc"].contiguous()  # safetensors keeps no views

    @override
    def save_inference_model(self, path: str | Path) -> tuple[Path, Path]:
        """SAELens's folder of the inference crosscoder, with checksums in its config."""
        weights_path, cfg_path = super().save_inference_model(path)
        write_checksums(weights_path, cfg_path)
        return weights_path, cfg_path

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
