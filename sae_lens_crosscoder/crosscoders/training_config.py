"""Config fields of every crosscoder in training."""

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from sae_lens import TrainingSAEConfig
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.config import CrosscoderConfigBase
from sae_lens_crosscoder.crosscoders.initialisation import Initialisation
from sae_lens_crosscoder.crosscoders.scores import Score
from sae_lens_crosscoder.crosscoders.sparse_step.screening import ScreeningChoice

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
