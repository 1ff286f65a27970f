"""Types that all converters share, and the canonical form of a converted crosscoder."""

import math
import warnings
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from sae_lens.saes.sae import SAEMetadata
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales, fold_scores
from sae_lens_crosscoder.crosscoders.inference import JumpReLUCrosscoderConfig, ReLUCrosscoderConfig
from sae_lens_crosscoder.crosscoders.scores import Score, score_norms
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.field_types import validate_config
from sae_lens_crosscoder.storage.names import printable_names

ForeignFormat = Literal["dictionary_learning", "kissane", "crosscode"]
PAPER_MODELS = ("google/gemma-2-2b", "google/gemma-2-2b-it")


@dataclass(kw_only=True)
class ForeignOptions:
    """Settings that published files leave open; None for the defaults of the format's converter."""

    format: ForeignFormat | None = None
    """Layout of the file; by default recognised by its tensors and name."""
    hook_name: str | None = None
    """Hook that the activations were read at."""
    model_names: tuple[str, str] | None = None
    """The base model and the chat model."""
    dropped_tokens: str | None = None
    """Description of the tokens left out of training; recorded only."""
    activation_scales: tuple[float, float] | None = None
    """Factors by which each model's activations were multiplied; 1 1 if you multiply them yourself."""
    theta: float | None = None
    """Threshold on scores under the file's own norm, in place of the file's."""
    allow_relu: bool = False
    """Load a BatchTopK crosscoder without an estimated threshold as a ReLU crosscoder."""

    def __post_init__(self) -> None:
        validate_config(self)
        if self.format is not None and self.format not in get_args(ForeignFormat):
            raise ValueError(f"format={self.format!r} is not one of {get_args(ForeignFormat)}.")
        if self.theta is not None and not 0 <= self.theta < float("inf"):
            raise ValueError(f"theta={self.theta} must be a finite number of at least 0, as scores are.")

    @property
    def given(self) -> list[str]:
        """Names of the options that were set."""
        return [option.name for option in fields(ForeignOptions) if getattr(self, option.name) != option.default]


@dataclass(frozen=True)
class ForeignFile:
    """A loaded weights file with the settings beside it."""

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    """All keys of the JSON files beside it; the weights decide if the two disagree."""


@dataclass(kw_only=True)
class ForeignCrosscoder:
    """A crosscoder of a pair in the space and units of its training."""

    format: ForeignFormat
    weights: Weights
    layout: StackedLayout
    hook_name: str
    model_names: tuple[str, str] | None = PAPER_MODELS
    """None if the settings name another pair in an ambiguous way."""
    dropped_tokens: str
    score_norm: Score = "sum"
    theta: float | None = None
    """The threshold on scores under `score_norm`; None for a ReLU crosscoder."""
    scales: tuple[float, ...] | None = None
    means: Float[Tensor, " d_in"] | None = None
    assumptions: list[str]
    """Settings that the file left open, and their assumed values."""
    details: dict[str, Any]
    """Further facts for the metadata."""


def canonical_state(
    foreign: ForeignCrosscoder, options: ForeignOptions
) -> tuple[dict[str, Any], dict[str, Float[Tensor, "..."]]]:
    """Convert to config and tensors in canonical form, as SAELens's loaders return them.

    The activation is the score `f (n_base + n_chat)`. A crosscoder trained with another norm keeps its name in
    `score_norm`, and its threshold becomes one per latent, so that the same latents are on.
    """
    layout, weights = foreign.layout, foreign.weights
    norms = _norms(weights, layout, "sum")
    folded = fold_scores(weights, norms)
    if foreign.scales is not None:
        scales = torch.tensor(foreign.scales, dtype=torch.float64)
        folded = fold_activation_scales(folded, layout, scales, foreign.means)
    state = {name: tensor.contiguous() for name, tensor in folded._asdict().items()}
    cfg_class = ReLUCrosscoderConfig
    if foreign.theta is not None:
        cfg_class = JumpReLUCrosscoderConfig
        trained_norms = _norms(weights, layout, foreign.score_norm)
        # A latent with a zero decoder never fires after folding, at any threshold.
        state["threshold"] = foreign.theta * torch.where(norms > 0, norms / trained_norms, torch.ones_like(norms))
    if not all(bool(tensor.isfinite().all()) for tensor in (norms, *state.values())):
        raise ValueError(
            f"The weights of this crosscoder ({foreign.format}) become infinite in canonical form: the file is "
            "damaged, or must be loaded with dtype='float64'."
        )
    means = None if foreign.means is None else [mean.tolist() for mean in layout.split(foreign.means)]
    cfg = cfg_class(
        d_models=layout.d_models,
        d_sae=len(norms),
        dtype=str(norms.dtype).removeprefix("torch."),
        score_norm=foreign.score_norm,
        activation_scales=foreign.scales,
        activation_means=means,
        metadata=SAEMetadata(**_metadata(foreign, options)),
    )
    return cfg.to_dict(), state


def _norms(weights: Weights, layout: StackedLayout, score: Score) -> Float[Tensor, " d_sae"]:
    """Compute norms in float64, in which squares neither overflow nor vanish."""
    return score_norms(weights.W_dec.double(), layout, score).to(weights.W_dec)


def _metadata(foreign: ForeignCrosscoder, options: ForeignOptions) -> dict[str, Any]:
    base, chat = options.model_names or foreign.model_names or (None, None)
    open_names = [name for name in ("hook_name", "model_names", "dropped_tokens") if getattr(options, name) is None]
    return {
        "model_name": base,
        "chat_model_name": chat,
        "hook_name": options.hook_name or foreign.hook_name,
        "dropped_tokens": options.dropped_tokens or foreign.dropped_tokens,
        "converted_from": foreign.format,
        "assumptions": foreign.assumptions + [f"{name}={getattr(foreign, name)!r}" for name in open_names],
        **foreign.details,
    }


def warn_of_assumptions(cfg: dict[str, Any], path: Path) -> None:
    """List the assumed settings in one warning."""
    lines = "".join(f"\n - {assumption}" for assumption in cfg["metadata"]["assumptions"])
    warnings.warn(
        f"{path} was loaded as {cfg['metadata']['converted_from']}, with assumed settings (see "
        f"cfg.metadata.assumptions; arguments of slc.load override them):{lines}",
        stacklevel=6,  # the caller of slc.load or SAE.from_pretrained
    )


def validate_tensors(
    file: ForeignFile, required: tuple[str, ...], optional: tuple[str, ...] = (), may_be_nan: tuple[str, ...] = ()
) -> None:
    """Raise a ValueError for a tensor that is missing, unknown, of the wrong dtype, or not finite."""
    missing = [name for name in required if name not in file.tensors]
    if missing:
        raise ValueError(
            f"Incomplete crosscoder: {file.path} has no {', '.join(missing)}, only {printable_names(file.tensors)}. "
            "Download the complete file."
        )
    unknown = sorted(set(file.tensors) - {*required, *optional})
    if unknown:
        raise ValueError(
            f"{file.path} has unknown tensors, {printable_names(unknown)}. It is another kind of dictionary, or newer "
            "than this package, and cannot be converted without them."
        )
    for name, tensor in file.tensors.items():
        if not tensor.is_floating_point() and (name in required or tensor.is_complex() or tensor.dtype == torch.bool):
            raise ValueError(f"{file.path}: {name} has dtype {tensor.dtype}, expected floating-point numbers.")
        allowed = ~tensor.isinf() if name in may_be_nan else tensor.isfinite()
        if not bool(allowed.all()):
            raise ValueError(f"{file.path}: {name} contains NaN or infinite numbers; the file is damaged.")


def validate_shapes(file: ForeignFile, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Raise on the first tensor with a wrong shape: name -> (shape, expected shape)."""
    for name, (shape, expected) in shapes.items():
        if shape != expected:
            raise ValueError(
                f"{file.path}: {name} has shape {shape}, expected {expected} from the other tensors. The file is "
                "damaged or mixes two crosscoders."
            )


def scalar(file: ForeignFile, name: str, default: float = math.nan) -> float:
    """Return the number in a tensor of one element; `default` without the tensor."""
    tensor = file.tensors.get(name)
    if tensor is None:
        return default
    if tensor.numel() != 1:
        raise ValueError(f"{file.path}: {name} has shape {tuple(tensor.shape)}, expected one number.")
    return float(tensor)


def validate_pair(file: ForeignFile, n_models: int) -> None:
    """Raise a ValueError unless the file stacks two models."""
    if n_models != 2:
        raise ValueError(
            f"{file.path} stacks {n_models} activations, expected 2 (base and chat). It may be a crosscoder over "
            "layers of one model, which cannot be converted."
        )
