"""Interventions on latents, as what they add to the models' activations: pure maths, no models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.dominant_tokens import NormLimits
from sae_lens_crosscoder.arguments import validate_arguments, validate_width
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.stacking import StackedLayout

LatentIds = Sequence[int] | Int[Tensor, " latent"] | pd.Index | pd.DataFrame | None
MaxActivation = float | Sequence[float] | Float[Tensor, " latent"] | pd.Series | None
How = Literal["replace", "add", "ablate", "scale", "steer", "reconstruct"]
ModelName = Literal["base", "chat"]
CARRIES: Final = ("replace", "add")
"""The interventions that carry what latents write from one model into the other."""


@dataclass(frozen=True)
class Intervention:
    """Adds `sum_j f_j directions_j^m + constants^m + input_factors^m h^m` to each edited activation h^m.

    f are the latents' activations on unedited activations. Only the chosen latents are encoded. With input factor 0
    nothing is reconstructed, so the crosscoder's error stays as it is. One entry per model, None for unedited models.
    """

    layout: StackedLayout
    W_enc: Float[Tensor, "d_in latent"]
    b_enc: Float[Tensor, " latent"]
    threshold: Float[Tensor, " latent"]
    directions: tuple[Float[Tensor, "latent _"] | None, ...]
    constants: tuple[Float[Tensor, " _"] | None, ...]
    input_factors: tuple[float, ...]
    limits: NormLimits
    """Tokens beyond them dominate: latents are not read there, so an edit that reads activations leaves them alone."""

    @property
    def reads_activations(self) -> bool:
        """True if the edit depends on both models' activations."""
        return any(direction is not None for direction in self.directions)

    @validate_arguments
    def feature_acts(self, stacked: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch latent"]:
        """Activations of the chosen latents, equal to `crosscoder.encode` at their ids."""
        validate_width("stacked", stacked, len(self.W_enc))
        hidden_pre = stacked.to(self.W_enc) @ self.W_enc + self.b_enc
        used = self.limits.ordinary(stacked)[..., None].to(hidden_pre.device)
        return hidden_pre.relu() * (hidden_pre > self.threshold) * used

    @validate_arguments
    def deltas(
        self, stacked: Float[Tensor, "*batch d_in"] | None, now: Mapping[int, Sequence[Tensor]] | None = None
    ) -> tuple[Float[Tensor, "*_ _"] | None, ...]:
        """The edit added to each source's activation; a single vector where it is the same at every position.

        Args:
            stacked: unedited activations of all sources; None is allowed if the intervention does not read them.
            now: by the place of a hook among several, each model's activation there as earlier edits made it, to which
                the edit is added; by default the unedited ones.
        """
        written = self.directions
        if self.reads_activations:
            assert stacked is not None
            f = self.feature_acts(stacked)
            written = [None if direction is None else f @ direction for direction in self.directions]
            parts = list(self.layout.split(stacked))
            for place, edited in (now or {}).items():
                parts[place :: len(self.layout.hook_names)] = edited
            for m, part in enumerate(parts):
                if self.input_factors[m] != 0:
                    written[m] = _sum_present(written[m], self.input_factors[m] * part.to(f))
        deltas = [_sum_present(*parts) for parts in zip(written, self.constants, strict=True)]
        if stacked is not None and self.reads_activations and self.limits.max_norms is not None:
            used = self.limits.ordinary(stacked)[..., None]
            deltas = [None if delta is None else torch.where(used.to(delta.device), delta, 0) for delta in deltas]
        return tuple(deltas)

    def tensors(self) -> list[Tensor]:
        """All tensors the intervention consists of."""
        optional = [*self.directions, *self.constants]
        max_norms = torch.tensor(self.limits.max_norms or (), dtype=torch.float64)
        return [
            self.W_enc,
            self.b_enc,
            self.threshold,
            max_norms,
            *(tensor for tensor in optional if tensor is not None),
        ]


@validate_arguments
def intervention(
    crosscoder: InferenceCrosscoder,
    latent_ids: LatentIds,
    how: How = "replace",
    *,
    model: str | None = None,
    models: Sequence[str] | None = None,
    coefficient: float = 1.0,
    max_activation: MaxActivation = None,
    with_bias: bool = False,
) -> Intervention:
    """Build an intervention by name; `C_m = sum_S f_j d_j^m` is what the latents S write into model m.

    Args:
        latent_ids: the latents S, as a list, a tensor, or rows of the table of `diagnose`; None means all.
        how: the edit of model m, where o is the other model:

            - `replace`: `coefficient * (C_o - C_m)`, the latents write in m what they write in o
            - `add`: `coefficient * C_o`
            - `ablate`: `-coefficient * C_m`
            - `scale`: `(coefficient - 1) * C_m`, the latents write `coefficient` times as much
            - `steer`: `coefficient * sum_S max_activation_j d_j^m` at every position, independent of f
            - `reconstruct`: `coefficient * (C_m + b_m - h_m)`, only what the latents explain is left
        model: the edited model, `base`, `chat` or, of more models, one of `crosscoder.layout.names`. By default the
            base model for `replace` and `add`, and all for the others.
        models: the two models that `replace` and `add` carry between, by name, of a crosscoder of more: the first
            takes the place of base. With other edits, only these two are edited.
        coefficient: strength; 1 is the plain intervention, and for `scale` it is the factor.
        max_activation: for `steer` only: one number for all or one per latent, or the whole column of `diagnose`, of
            which the latents' entries are taken; by default that of the rows given as `latent_ids`. With coefficient 1
            the edit is what the latents write at their strongest.
        with_bias: for `replace` also `coefficient * (b_o - b_m)`, the difference of the decoder biases; for `ablate`
            also `-coefficient * b_m`, so that ablating all latents leaves only what the crosscoder does not explain.

    Raises:
        ValueError: for an unknown or undefined combination, latents that do not exist or repeat, or `replace` and
            `add` between models of different width, or among more than two without `models`.

    >>> from sae_lens_crosscoder.crosscoders.inference import ReLUCrosscoder, ReLUCrosscoderConfig
    >>> crosscoder = ReLUCrosscoder(ReLUCrosscoderConfig(d_models=(1, 1), d_sae=1))
    >>> biases = {"b_enc": torch.zeros(1), "b_dec": torch.zeros(2)}
    >>> weights = {"W_enc": torch.ones(2, 1), "W_dec": torch.tensor([[1.0, 5.0]]), **biases}
    >>> _ = crosscoder.load_state_dict(weights)
    >>> intervention(crosscoder, [0], "replace").deltas(torch.tensor([[1.0, 2.0]]))  # where f is 3
    (tensor([[12.]]), None)
    """
    crosscoder = validate_inference(crosscoder, "An intervention")
    if isinstance(latent_ids, pd.DataFrame):
        if how == "steer" and max_activation is None and "max_activation" in latent_ids:
            max_activation = latent_ids["max_activation"]
        latent_ids = latent_ids.index
    _validate_combination(how, max_activation, with_bias)
    targets, others = _targets(crosscoder, how, model, models)
    if isinstance(max_activation, pd.Series) and latent_ids is not None and len(max_activation) == crosscoder.cfg.d_sae:
        max_activation = max_activation.reindex(pd.Index(list(map(int, latent_ids))))
    chosen = _validated_ids(latent_ids, crosscoder)
    W_dec = [decoder.detach()[chosen] for decoder in crosscoder.decoders]
    b_dec = [bias.detach() for bias in crosscoder.decoder_biases]
    directions: list[Tensor | None] = [None] * len(W_dec)
    constants: list[Tensor | None] = [None] * len(W_dec)
    for m in targets:
        if how == "steer":
            constants[m] = coefficient * (_amounts(max_activation, W_dec[m]) @ W_dec[m])
        else:
            directions[m] = _direction(W_dec, m, others.get(m, m), how, coefficient)
        if with_bias or how == "reconstruct":
            constants[m] = _direction(b_dec, m, others.get(m, m), how, coefficient)
    threshold: Any = getattr(crosscoder, "threshold", torch.zeros_like(crosscoder.b_enc))
    input_factor = -coefficient if how == "reconstruct" else 0.0
    return Intervention(
        layout=crosscoder.layout,
        W_enc=crosscoder.W_enc.detach()[:, chosen],
        b_enc=crosscoder.b_enc.detach()[chosen],
        threshold=threshold.detach()[chosen],
        directions=tuple(directions),
        constants=tuple(constants),
        input_factors=tuple(input_factor if m in targets else 0.0 for m in range(len(W_dec))),
        limits=crosscoder.trained_limits,
    )


def _direction(decoders: Sequence[Tensor], m: int, other: int, how: How, coefficient: float) -> Tensor:
    """Edit of model m per unit of each latent's activation; the biases count as one more latent, always on."""
    match how:
        case "replace":
            return coefficient * (decoders[other] - decoders[m])
        case "add":
            return coefficient * decoders[other]
        case "ablate":
            return -coefficient * decoders[m]
        case "scale":
            return (coefficient - 1) * decoders[m]
        case _:
            return coefficient * decoders[m]


def _targets(
    crosscoder: InferenceCrosscoder, how: How, model: str | None, models: Sequence[str] | None
) -> tuple[Sequence[int], dict[int, int]]:
    """Places of the edited models and, for edits that carry, of the model that each gets what latents write from."""
    layout = crosscoder.layout
    named = None if model is None else layout.of_model(model)
    if named == ():
        raise ValueError(f"Unknown model={model!r}: expected one of {layout.of_models.names}, or None.")
    if how not in CARRIES and models is None:
        return range(layout.n_sources) if named is None else named, {}
    if how in CARRIES and models is None and layout.n_models <= 2 and not (layout.is_pair and layout.same_width):
        raise ValueError(
            f"how={how!r} carries directions between models, but the crosscoder reads widths {layout.d_models}. Only "
            "two models of one width share a basis: use 'ablate', 'scale' or 'steer'."
        )
    two = TwoModels.of(crosscoder, models, f"how={how!r}")
    first, second = two.places
    if named is not None and not set(named) <= set(two.places):
        raise ValueError(f"model={model!r} must be one of models={two.names}. Leave model out, or name it there too.")
    if how not in CARRIES:
        return two.places if named is None else named, {}
    two.validate_one_width(f"how={how!r}")
    return [first] if named is None else named, {first: second, second: first}


def _validated_ids(latent_ids: Any, crosscoder: InferenceCrosscoder) -> slice | Tensor:
    if latent_ids is None:
        return slice(None)  # which copies no weights
    ids = latent_ids if isinstance(latent_ids, Tensor) else _as_tensor(latent_ids)
    ids = ids.to(crosscoder.W_dec.device)
    if ids.ndim == 1 and len(ids) == 0:
        return ids.long()
    if ids.ndim != 1 or ids.is_floating_point() or ids.dtype == torch.bool:
        raise ValueError(f"latent_ids must be indices, but are {ids.dtype} of shape {tuple(ids.shape)}. {_INDICES}")
    d_sae = crosscoder.cfg.d_sae
    outside = ids[(ids < 0) | (ids >= d_sae)]
    if len(outside):
        raise ValueError(f"There is no latent {int(outside[0])}: this crosscoder has latents 0 to {d_sae - 1}.")
    if len(ids.unique()) < len(ids):
        raise ValueError("latent_ids contains a latent twice, which would count it twice. Pass every latent once.")
    return ids


_INDICES = (
    "Pass a list such as [5], convert a mask with mask.nonzero().flatten(), or pass the index of a table: "
    "table[table.verdict == ...].index."
)


def _as_tensor(latent_ids: Any) -> Tensor:
    values = np.array(latent_ids)
    if values.size == 0:
        return torch.zeros(values.shape, dtype=torch.long)
    if values.dtype.kind not in "biuf":
        raise ValueError(
            f"latent_ids must be indices, but are a {type(latent_ids).__name__} of {values.dtype}. {_INDICES}"
        )
    return torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "iu" else values)


def _amounts(max_activation: Any, W_dec: Tensor) -> Tensor:
    values = max_activation if isinstance(max_activation, Tensor) else np.array(max_activation, dtype=np.float64)
    amounts = torch.as_tensor(values).to(W_dec)
    if amounts.ndim and len(amounts) != len(W_dec):
        raise ValueError(
            f"max_activation has {len(amounts)} values for {len(W_dec)} latents: pass one per latent, in the order of "
            "latent_ids, or one for all."
        )
    return amounts.expand(len(W_dec))


def _validate_combination(how: str, max_activation: Any, with_bias: bool) -> None:
    if how not in get_args(How):
        raise ValueError(f"Unknown how={how!r}: expected one of {get_args(How)}.")
    if how == "steer" and max_activation is None:
        raise ValueError(
            "how='steer' needs max_activation: pass rows of the table of diagnose as latent_ids, or that column of it."
        )
    if how != "steer" and max_activation is not None:
        raise ValueError(f"max_activation goes with how='steer', but how={how!r} reads activations from the tokens.")
    if with_bias and how not in ("replace", "ablate"):
        raise ValueError(f"with_bias=True goes with how='replace' or how='ablate', not {how!r}.")


def _sum_present(*parts: Tensor | None) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return sum(present[1:], present[0]) if present else None
