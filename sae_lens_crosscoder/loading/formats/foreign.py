"""Types that all converters share."""

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.crosscoders.canonical import Weights
from sae_lens_crosscoder.crosscoders.scores import Score
from sae_lens_crosscoder.loading.formats.settings import Settings
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.field_types import validate_config

ForeignFormat = Literal[
    "dictionary_learning", "kissane", "crosscode", "dedicated_features", "gemma_scope_2", "llamascopium"
]
ModelOrder = Literal["base_chat", "chat_base"]
PAPER_MODELS = ("google/gemma-2-2b", "google/gemma-2-2b-it")
PAPER_WIDTHS = (2304, 2304)


@dataclass(kw_only=True)
class ForeignOptions:
    """Settings that published files leave open; None for the defaults of the format's converter."""

    format: ForeignFormat | None = None
    """Layout of the file; by default recognised by its tensors and name."""
    hook_name: str | None = None
    """Hook that the activations were read at."""
    model_names: tuple[str, str] | None = None
    """The base model and the chat model."""
    model_order: ModelOrder | None = None
    """Order of the two models in the file: base_chat or chat_base. The crosscoder is always base first."""
    dropped_tokens: str | None = None
    """Description of the tokens left out of training; recorded only."""
    activation_scales: tuple[float, float] | None = None
    """Factors by which each model's activations were multiplied; 1 1 if you multiply them yourself."""
    theta: float | None = None
    """Threshold on scores under the file's own norm, in place of the file's."""
    allow_relu: bool = False
    """Load a crosscoder whose threshold is unknown as a ReLU crosscoder."""
    split_gates: bool = False
    """Load latents with a gate per model as one latent per model; Delta_norm is then 0 or 1 by construction."""

    def __post_init__(self) -> None:
        validate_config(self)
        for name, choices in (("format", ForeignFormat), ("model_order", ModelOrder)):
            value = getattr(self, name)
            if value is not None and value not in get_args(choices):
                raise ValueError(f"{name}={value!r} is not one of {get_args(choices)}.")
        if self.theta is not None and not 0 <= self.theta < float("inf"):
            raise ValueError(f"theta={self.theta} must be a finite number of at least 0, as scores are.")

    @property
    def given(self) -> list[str]:
        """Names of the options that were set."""
        return [option.name for option in fields(ForeignOptions) if getattr(self, option.name) != option.default]


@dataclass(frozen=True)
class ForeignFile:
    """The tensors of a crosscoder's weight files with the settings beside them."""

    path: Path
    """The weights file; the folder of a crosscoder in several files."""
    tensors: dict[str, Tensor]
    """Of several files, the names begin with the file's: `params_layer_0.w_enc`."""
    settings: Settings


@dataclass(frozen=True)
class Fact:
    """A setting of a crosscoder, and whether its file states it; None is unknown."""

    value: Any = None
    stated: bool = False


Source = tuple[str | None, str | None]
"""The model and the hook of one part of the stack, None if the file does not say."""


@dataclass(kw_only=True)
class ForeignCrosscoder:
    """A crosscoder in the space and units of its training, its models in the file's order."""

    format: ForeignFormat
    weights: Weights
    layout: StackedLayout
    hook_name: Fact = field(default_factory=Fact)
    model_names: Fact = field(default_factory=Fact)
    """Names of the models, base first."""
    dropped_tokens: Fact = field(default_factory=Fact)
    model_order: Fact = field(default_factory=lambda: Fact("base_chat"))
    sources: tuple[Source, ...] | None = None
    """Every part of the stack, of a crosscoder over several hooks; None for a pair of models at one hook."""
    n_hooks: int = 1
    """Hooks at which every model is read."""
    score_norm: Score = "sum"
    theta: float | Float[Tensor, " d_sae"] | None = None
    """The threshold on scores under `score_norm`, one or one per latent; None for a ReLU crosscoder."""
    scales: tuple[float, ...] | None = None
    means: Float[Tensor, " d_in"] | None = None
    n_exclusive: tuple[int, int] = (0, 0)
    """Latents confined to the base and to the chat model; they come first."""
    assumptions: list[str]
    """Sentences about settings that the file left open."""
    details: dict[str, Any] = field(default_factory=dict[str, Any])
    """Further facts for the metadata."""

    def swapped(self) -> "ForeignCrosscoder":
        """The same crosscoder with its models in reverse order."""
        layout = StackedLayout(self.layout.d_models[::-1])

        def swap(rows: Tensor) -> Tensor:
            return layout.stack(self.layout.split(rows)[::-1])

        W_enc, b_enc, W_dec, b_dec = self.weights
        return replace(
            self,
            weights=Weights(swap(W_enc.T).T, b_enc, swap(W_dec), swap(b_dec)),
            layout=layout,
            scales=None if self.scales is None else self.scales[::-1],
            means=None if self.means is None else swap(self.means),
        )


def split_gates(weights: Weights, layout: StackedLayout, thresholds: list[Tensor]) -> tuple[Weights, Tensor]:
    """One latent per source from latents that have a gate per source: the same function, with d_sae per source.

    Latent `m d_sae + j` is latent j as far as it writes source m.

    Args:
        thresholds: per source, one threshold per latent on `f_j n_j^m`.

    Returns:
        The weights, and the threshold of every new latent on its score with the norm `sum`.
    """
    n = layout.n_sources
    decoders = layout.split(weights.W_dec)
    zero = [torch.zeros_like(decoder) for decoder in decoders]
    rows = [layout.stack([*zero[:m], decoder, *zero[m + 1 :]]) for m, decoder in enumerate(decoders)]
    split = Weights(weights.W_enc.repeat(1, n), weights.b_enc.repeat(n), torch.cat(rows), weights.b_dec)
    return split, torch.cat(thresholds)
