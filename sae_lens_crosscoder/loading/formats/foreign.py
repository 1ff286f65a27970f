"""What every converter of other people's crosscoders shares: what they read, and the canonical form of it."""

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
from sae_lens_crosscoder.storage.names import printable_names

ForeignFormat = Literal["dictionary_learning", "kissane", "crosscode"]
PAPER_MODELS = ("google/gemma-2-2b", "google/gemma-2-2b-it")


@dataclass(kw_only=True)
class ForeignOptions:
    """What other people's files do not say, from somebody who knows. None: what the format's converter documents."""

    format: ForeignFormat | None = None
    """Whose layout it is; by default recognised by its tensors and file name."""
    hook_name: str | None = None
    """Where the activations were taken."""
    model_names: tuple[str, str] | None = None
    """The base model and the chat model."""
    dropped_tokens: str | None = None
    """Which tokens were left out of training, in words: recorded, not acted on."""
    activation_scales: tuple[float, float] | None = None
    """What each model's activations were multiplied by; 1 1 if you multiply them yourself."""
    theta: float | None = None
    """The threshold on scores under the file's own norm, in place of the file's."""
    allow_relu: bool = False
    """Whether a BatchTopK crosscoder whose threshold was never estimated may be read as a ReLU crosscoder."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in get_args(ForeignFormat):
            raise ValueError(f"format={self.format!r} is not one of {get_args(ForeignFormat)}.")
        if self.theta is not None and not 0 <= self.theta < float("inf"):
            raise ValueError(f"theta={self.theta} must be a number of at least 0: scores are not negative.")

    @property
    def given(self) -> list[str]:
        """The names of the options that were set."""
        return [option.name for option in fields(ForeignOptions) if getattr(self, option.name) != option.default]


@dataclass(frozen=True)
class ForeignFile:
    """A weights file with the settings beside it, as read."""

    path: Path
    tensors: dict[str, Tensor]
    settings: dict[str, Any]
    """All keys of the JSON files beside it; the weights decide wherever both speak."""


@dataclass(kw_only=True)
class ForeignCrosscoder:
    """A pair's crosscoder in the space and units it was trained in."""

    format: ForeignFormat
    weights: Weights
    layout: StackedLayout
    hook_name: str
    model_names: tuple[str, str] | None = PAPER_MODELS
    """None where the settings name another pair, in a way that cannot be taken apart."""
    dropped_tokens: str
    score_norm: Score = "sum"
    theta: float | None = None
    """The threshold on scores under `score_norm`; None for a ReLU crosscoder."""
    scales: tuple[float, ...] | None = None
    means: Float[Tensor, " d_in"] | None = None
    assumptions: list[str]
    """What the file left open, and how that was read, each as a sentence."""
    details: dict[str, Any]
    """What else the file says, for the metadata."""


def canonical_state(
    foreign: ForeignCrosscoder, options: ForeignOptions
) -> tuple[dict[str, Any], dict[str, Float[Tensor, "..."]]]:
    """The config and the tensors of the crosscoder in canonical form, as SAELens's loaders return them.

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
        own = _norms(weights, layout, foreign.score_norm)
        # A latent that writes nothing was folded to silence: any threshold keeps it so.
        state["threshold"] = foreign.theta * torch.where(norms > 0, norms / own, torch.ones_like(norms))
    if not all(bool(tensor.isfinite().all()) for tensor in (norms, *state.values())):
        raise ValueError(
            f"The numbers of this crosscoder ({foreign.format}) are too large to be folded into canonical form: they "
            "would become infinite. The file is damaged, or must be loaded with dtype='float64'."
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
    """In float64 meanwhile, in which no square of theirs is lost."""
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


def state_assumptions(cfg: dict[str, Any], path: Path) -> None:
    """Say once, in one warning, what the file left open and how it was read."""
    lines = "".join(f"\n - {assumption}" for assumption in cfg["metadata"]["assumptions"])
    warnings.warn(
        f"{path} was read as {cfg['metadata']['converted_from']}, assuming what it does not say (arguments of slc.load "
        f"override it; kept in cfg.metadata.assumptions):{lines}",
        stacklevel=6,  # whoever called slc.load or SAE.from_pretrained
    )


def require_tensors(
    file: ForeignFile, required: tuple[str, ...], optional: tuple[str, ...] = (), may_be_nan: tuple[str, ...] = ()
) -> None:
    """Raise a ValueError if a tensor is missing, unknown, of another kind of number, or not finite."""
    missing = [name for name in required if name not in file.tensors]
    if missing:
        raise ValueError(
            f"{file.path} is only part of a crosscoder: it has no {', '.join(missing)}. It holds "
            f"{printable_names(file.tensors)}; get the whole file."
        )
    unknown = sorted(set(file.tensors) - {*required, *optional})
    if unknown:
        raise ValueError(
            f"{file.path} has tensors that this converter does not know, {printable_names(unknown)}: what they change "
            "would be lost without a word. It may be another kind of dictionary, or newer than this package."
        )
    for name, tensor in file.tensors.items():
        if not tensor.is_floating_point() and (name in required or tensor.is_complex() or tensor.dtype == torch.bool):
            raise ValueError(f"{file.path}: {name} holds {tensor.dtype}, which no crosscoder's does.")
        allowed = ~tensor.isinf() if name in may_be_nan else tensor.isfinite()
        if not bool(allowed.all()):
            raise ValueError(f"{file.path}: {name} holds NaN or infinite numbers, so the file is damaged.")


def require_shapes(file: ForeignFile, shapes: dict[str, tuple[tuple[int, ...], tuple[int, ...]]]) -> None:
    """Raise on the first tensor whose shape is not the expected one: name -> (found, expected)."""
    for name, (found, expected) in shapes.items():
        if found != expected:
            raise ValueError(
                f"{file.path}: {name} has shape {found}, but the other tensors ask for {expected}. The file is damaged "
                "or mixes two crosscoders."
            )


def scalar(file: ForeignFile, name: str, default: float = math.nan) -> float:
    """The one number of a tensor; `default` without the tensor."""
    tensor = file.tensors.get(name)
    if tensor is None:
        return default
    if tensor.numel() != 1:
        raise ValueError(f"{file.path}: {name} has shape {tuple(tensor.shape)}, but it must be one number.")
    return float(tensor)


def require_pair(file: ForeignFile, n_models: int) -> None:
    if n_models != 2:
        raise ValueError(
            f"{file.path} stacks {n_models} activations, not a base and a chat model's: this converter reads pairs "
            "(such files may also be crosscoders over layers of one model)."
        )
