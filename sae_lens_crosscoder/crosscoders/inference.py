"""Crosscoders for reading: saved in canonical form, so that an activation is a score."""

import copy
import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path

import torch
from jaxtyping import Float
from sae_lens import SAE, JumpReLUSAE, JumpReLUSAEConfig, StandardSAE, StandardSAEConfig, TrainingSAE
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder.activations.dominant_tokens import MAX_NORM_RATIO, NormLimits
from sae_lens_crosscoder.arguments import validate_arguments, validate_width
from sae_lens_crosscoder.crosscoders.config import CrosscoderConfigBase
from sae_lens_crosscoder.crosscoders.folder import save_with_checksums
from sae_lens_crosscoder.crosscoders.partition import PartitionFields
from sae_lens_crosscoder.crosscoders.scores import SCORES, Score
from sae_lens_crosscoder.crosscoders.sparse_step.screening import pairs_above, screening_precision
from sae_lens_crosscoder.crosscoders.views import CrosscoderViews


@dataclass(kw_only=True)
class InferenceConfigBase(CrosscoderConfigBase, ABC):
    """Config fields of saved crosscoders that do not exist during training."""

    score_norm: Score | None = None
    """The norm whose scores met the threshold in training. Always set after construction: `score`, except where a
    converted crosscoder was trained with another norm than the one its activations are scores of."""
    activation_means: tuple[tuple[float, ...], ...] | list[list[float]] | None = None
    """One vector mean_m per model that was subtracted from its activations, before scaling; None means all 0."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.score_norm = self.score_norm or self.score
        if self.score_norm not in SCORES:
            raise ValueError(f"score_norm={self.score_norm!r} is not one of {SCORES}.")
        if self.activation_means is not None:
            self.activation_means = tuple(tuple(float(value) for value in mean) for mean in self.activation_means)
            widths = tuple(len(mean) for mean in self.activation_means)
            if widths != self.layout.d_models or not all(map(math.isfinite, chain(*self.activation_means))):
                raise ValueError(
                    f"activation_means has vectors of widths {widths}, expected one finite vector for each "
                    f"model, of widths {self.layout.d_models}."
                )


@dataclass
class ReLUCrosscoderConfig(InferenceConfigBase, StandardSAEConfig):
    """A crosscoder whose latents are on wherever they are positive; L1 training saves this."""

    @classmethod
    @override
    def architecture(cls) -> str:
        return "crosscoder"


@dataclass
class JumpReLUCrosscoderConfig(PartitionFields, InferenceConfigBase, JumpReLUSAEConfig):
    """A crosscoder whose latents are on where their score exceeds a threshold; BatchTopK training saves this."""

    @override
    def __post_init__(self) -> None:
        super().__post_init__()
        self.validate_partition(self.d_sae, self.layout)

    @classmethod
    @override
    def architecture(cls) -> str:
        return "jumprelu_crosscoder"


class InferenceCrosscoder(CrosscoderViews):
    """A crosscoder in canonical form: raw activations in, scores out."""

    @property
    def decoder_norms(self) -> Float[Tensor, "d_sae source"]:
        """n_j^m in the space the crosscoder was trained in, the one that Delta_norm is about.

        With `score="sum"` every row of a latent that writes anything sums to 1, unless scales were given afterwards.
        """
        precision = torch.promote_types(self.W_dec.dtype, torch.float32)  # half precision has 23 values of Delta_norm
        scales = self.cfg.activation_scales or (1.0,) * self.layout.n_sources
        return self.layout.norms(self.W_dec.to(precision)) * torch.tensor(
            scales, dtype=precision, device=self.W_dec.device
        )

    @property
    def activation_means(self) -> Float[Tensor, " d_in"]:
        """mean_m of every model side by side: the trained space holds `c_m (h^m - mean_m)`."""
        if self.cfg.activation_means is None:
            return torch.zeros_like(self.b_dec)
        means = [torch.tensor(mean, dtype=torch.float64).to(self.b_dec) for mean in self.cfg.activation_means]
        return self.layout.stack(means)

    @validate_arguments
    def with_activation_scales(self, scales: Sequence[float]) -> "InferenceCrosscoder":
        """Return this crosscoder, read in a space in which each model's activations are multiplied by one factor.

        Delta_norm, nu and verdicts then are those of the scaled space, in which the louder of two models weighs no more
        than the other. The weights are shared and unchanged, and so are scores, thresholds and reconstructions: the
        selection that training made stays that of the unscaled space. `cfg.metadata.scales_given_after_training` says
        so, and goes into the manifests of results.

        Args:
            scales: c_m, one per model, such as `MeanNorms.scales()`.

        Raises:
            ValueError: for a crosscoder that was trained with scales, or not one positive factor per model.
        """
        if self.cfg.activation_scales is not None:
            raise ValueError(
                f"activation_scales={tuple(scales)} cannot be set: the crosscoder was trained with "
                f"activation_scales={self.cfg.activation_scales}. Leave them out."
            )
        read = copy.copy(self)
        read.cfg = replace(self.cfg, activation_scales=tuple(scales), metadata=copy.deepcopy(self.cfg.metadata))
        read.cfg.metadata.scales_given_after_training = True
        return read

    @validate_arguments
    def norm_limits(self, max_norm_ratio: float | None = MAX_NORM_RATIO) -> NormLimits | None:
        """Limits that leave out the tokens that dominate, from those that training measured (`metadata.max_norms`).

        Args:
            max_norm_ratio: None for limits that keep all tokens.

        Returns:
            The limits; None if the metadata have none, as of a crosscoder that was trained elsewhere.

        Raises:
            ValueError: for metadata that are not one number per model.
        """
        if max_norm_ratio is None:
            return NormLimits(self.layout, None)
        max_norms, ratio = self.cfg.metadata.max_norms, self.cfg.metadata.max_norm_ratio
        if max_norms is None:
            return None
        return NormLimits(self.layout, tuple(max_norm_ratio / (ratio or max_norm_ratio) * norm for norm in max_norms))

    @property
    def trained_limits(self) -> NormLimits:
        """Limits that training applied; they keep all tokens if it applied none, or is unknown."""
        max_norms = self.cfg.metadata.max_norms
        return NormLimits(self.layout, None if max_norms is None else tuple(float(norm) for norm in max_norms))

    @override
    @torch.no_grad()
    def get_W_dec_norm(self) -> Float[Tensor, " d_sae"]:
        """s_j, which is 1 for every latent in canonical form, so SAELens's own norm fold changes nothing."""
        return torch.ones_like(self.b_enc)

    @property
    def thresholds(self) -> Float[Tensor, " d_sae"]:
        """Threshold that a pre-activation must exceed for its latent to be active, at least 0."""
        return torch.zeros_like(self.b_enc)

    @validate_arguments
    @torch.no_grad()
    def encode_sparse(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch d_sae"]:
        """Encode to a sparse tensor, without a dense one in between; `decode` accepts it."""
        validate_width("x", x, self.cfg.d_in)
        return self.encoding(self.process_sae_in(x), self.W_enc, self.b_enc)

    def encoding(
        self, x: Float[Tensor, "batch width"], W_enc: Float[Tensor, "width d_sae"], b_enc: Float[Tensor, " d_sae"]
    ) -> Float[Tensor, "batch d_sae"]:
        """Sparse encoding by other encoders of the latents, which keep their thresholds."""
        is_half = self.dtype.itemsize < 4  # and so cannot be screened in less
        precision = "float32" if is_half else screening_precision("auto", x.device)
        pairs, pre = pairs_above(x, W_enc, b_enc, self.thresholds, precision)
        return pairs.as_tensor(pre)

    @override
    @validate_arguments
    def save_model(self, path: str | Path) -> tuple[Path, Path]:
        """SAELens's folder, with checksums in its config."""
        return save_with_checksums(super().save_model, path)

    def to_jumprelu_sae(self) -> JumpReLUSAE:
        """The same function as a plain SAELens `jumprelu` SAE of the stack, for people without this package.

        Its input is the models' raw activations side by side, base first; `save_model(path)` writes it.
        """
        shared = {field.name for field in fields(JumpReLUSAEConfig)}
        cfg = JumpReLUSAEConfig(**{name: getattr(self.cfg, name) for name in shared})
        sae = JumpReLUSAE(cfg)
        weights = dict(W_enc=self.W_enc, b_enc=self.b_enc, W_dec=self.W_dec, b_dec=self.b_dec)
        sae.load_state_dict({**weights, "threshold": self.thresholds})
        return sae


class ReLUCrosscoder(InferenceCrosscoder, StandardSAE):
    """`f_j = ReLU(sum_m <e_j^m, h^m> + b_j)`."""


def threshold_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of the thresholds: at least float32, because rounding one of them changes which latents are on.

    >>> threshold_dtype(torch.bfloat16), threshold_dtype(torch.float64)
    (torch.float32, torch.float64)
    """
    return torch.promote_types(dtype, torch.float32)


class JumpReLUCrosscoder(InferenceCrosscoder, JumpReLUSAE):
    """As `ReLUCrosscoder`, with every score that is not above `threshold` set to 0."""

    @override
    def initialize_weights(self) -> None:
        super().initialize_weights()
        self.threshold = nn.Parameter(self.threshold.data.to(threshold_dtype(self.dtype)))

    @override
    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "JumpReLUCrosscoder":
        """Move or convert the weights as torch does, but never round the thresholds below float32."""
        exact = self.threshold.data
        moved = super()._apply(fn, recurse)
        now = self.threshold
        self.threshold = nn.Parameter(exact.to(now.device, threshold_dtype(now.dtype)), requires_grad=now.requires_grad)
        return moved

    @property
    @override
    def thresholds(self) -> Float[Tensor, " d_sae"]:
        return self.threshold.clamp(min=0)


def validate_inference(crosscoder: object, purpose: str) -> InferenceCrosscoder:
    """Return the crosscoder, or raise a ValueError if it is not an inference crosscoder."""
    if isinstance(crosscoder, InferenceCrosscoder):
        return crosscoder
    if isinstance(crosscoder, TrainingSAE):
        advice = (
            "A training crosscoder's selection depends on the batch it is in. Save it with save_inference_model(path) "
            "and load it with slc.load(path), or use what CrosscoderTrainingRunner.run() returns."
        )
    elif isinstance(crosscoder, SAE):
        advice = "An SAE of one model has no second decoder to compare. Load a crosscoder with slc.load(path)."
    elif isinstance(crosscoder, str | Path):
        advice = f"Load it first: slc.load({str(crosscoder)!r})."
    else:
        advice = "Pass the crosscoder first, as slc.load(path) or CrosscoderTrainingRunner.run() returns it."
    raise ValueError(f"{purpose} needs an inference crosscoder, but got a {type(crosscoder).__name__}. {advice}")


def validate_one_hook(crosscoder: InferenceCrosscoder, purpose: str) -> None:
    """Raise a ValueError for a crosscoder that reads models at several hooks, which has no one decoder per model."""
    layout = crosscoder.layout
    if layout.hook_names:
        raise ValueError(
            f"{purpose} needs one decoder per model, but this crosscoder reads {len(layout.hook_names)} hooks of "
            f"{layout.n_models} {'models' if layout.n_models > 1 else 'model'}. Train one at a single hook."
        )


def hook_name_of(crosscoder: InferenceCrosscoder) -> str:
    """Return the hook that the crosscoder was trained on, or raise a ValueError if its config does not name it."""
    hook_name = crosscoder.cfg.metadata.hook_name
    if hook_name is None and crosscoder.cfg.metadata.sources is not None:
        raise ValueError(
            f"The crosscoder reads {crosscoder.layout.n_sources} activations, but its file does not name the hooks. "
            "Set crosscoder.cfg.metadata.hook_name to them, joined by '+', or pass EvalData(activations=rows)."
        )
    if hook_name is None:
        raise ValueError(
            "The crosscoder's config has no hook_name. Set crosscoder.cfg.metadata.hook_name to the hook that it was "
            "trained on, such as 'blocks.13.hook_resid_post'."
        )
    return hook_name
