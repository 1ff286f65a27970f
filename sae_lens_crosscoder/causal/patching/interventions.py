"""What an intervention on latents adds to the models' activations: pure maths, no models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.stacking import StackedLayout

Latents = Sequence[int] | Int[Tensor, " chosen"] | pd.Index | None
MaxActivation = float | Sequence[float] | Float[Tensor, " chosen"] | pd.Series | None
How = Literal["replace", "add", "ablate", "scale", "steer", "reconstruct"]
ModelName = Literal["base", "chat"]
CARRIES: Final = ("replace", "add")
"""The interventions that carry what latents write in one model into the other."""


@dataclass(frozen=True)
class Intervention:
    """Adds `sum_j f_j directions_j^m + constant^m + own^m h^m` to the activation h^m of every model m that it touches.

    f are the activations of the chosen latents on unedited activations. Only the chosen latents are encoded, and
    where `own` is 0 nothing is reconstructed, so what the crosscoder fails to explain stays as it is. One entry per
    model, None for a model that is not touched.
    """

    layout: StackedLayout
    W_enc: Float[Tensor, "d_in chosen"]
    b_enc: Float[Tensor, " chosen"]
    threshold: Float[Tensor, " chosen"]
    directions: tuple[Float[Tensor, "chosen _"] | None, ...]
    constants: tuple[Float[Tensor, " _"] | None, ...]
    own: tuple[float, ...]

    @property
    def reads_activations(self) -> bool:
        """Whether both models' activations are needed to know what is added."""
        return any(direction is not None for direction in self.directions)

    def feature_acts(self, stacked: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows chosen"]:
        """f of the chosen latents: what `crosscoder.encode` gives for them."""
        hidden_pre = stacked.to(self.W_enc) @ self.W_enc + self.b_enc
        return hidden_pre.relu() * (hidden_pre > self.threshold)

    def deltas(self, stacked: Float[Tensor, "*rows d_in"] | None) -> tuple[Float[Tensor, "*_ _"] | None, ...]:
        """What is added to each model's activation; a vector where it is the same at every position.

        Args:
            stacked: both models' unedited activations; may be None if the intervention does not read them.
        """
        written = self.directions
        if self.reads_activations:
            assert stacked is not None
            f = self.feature_acts(stacked)
            written = [None if direction is None else f @ direction for direction in self.directions]
            for m, part in enumerate(self.layout.split(stacked)):
                if self.own[m] != 0:
                    written[m] = _sum_present(written[m], self.own[m] * part.to(f))
        return tuple(_sum_present(*parts) for parts in zip(written, self.constants, strict=True))

    def tensors(self) -> list[Tensor]:
        """All that it is made of."""
        optional = [*self.directions, *self.constants]
        return [self.W_enc, self.b_enc, self.threshold, *(tensor for tensor in optional if tensor is not None)]


def intervention(
    crosscoder: InferenceCrosscoder,
    latents: Latents,
    how: How = "replace",
    *,
    model: ModelName | None = None,
    coefficient: float = 1.0,
    max_activation: MaxActivation = None,
    with_bias: bool = False,
) -> Intervention:
    """The intervention that a name stands for, with `C_m = sum_S f_j d_j^m` what the latents write into model m.

    Args:
        latents: indices of the latents S, as a list, a tensor or the index of a table; None means all of them.
        how: what is added to the activation of model m, o being the other model:

            - `replace`: `coefficient * (C_o - C_m)`, so that the latents write there what they write in o
            - `add`: `coefficient * C_o`
            - `ablate`: `-coefficient * C_m`
            - `scale`: `(coefficient - 1) * C_m`, so that they write `coefficient` times as much
            - `steer`: `coefficient * sum_S max_activation_j d_j^m` at every position, whatever f is
            - `reconstruct`: `coefficient * (C_m + b_m - h_m)`, so that only what the latents explain is left
        model: which model is edited. By default the base model for `replace` and `add`, and every model for the others.
        coefficient: 1 is the plain intervention; for `scale` it is the factor.
        max_activation: for `steer` only, one for all or one per latent, as in the column of `diagnose`: with
            coefficient 1, exactly what the latents write where they are strongest is added.
        with_bias: for `replace` also `coefficient * (b_o - b_m)`, the difference of the decoder biases; for `ablate`
            also `-coefficient * b_m`, so that ablating all latents leaves only what the crosscoder does not explain.

    Raises:
        ValueError: for an unknown or meaningless combination, latents that do not exist or repeat, or `replace` and
            `add` between models that share no basis.

    >>> from sae_lens_crosscoder.crosscoders.inference import ReLUCrosscoder, ReLUCrosscoderConfig
    >>> crosscoder = ReLUCrosscoder(ReLUCrosscoderConfig(d_models=(1, 1), d_sae=1))
    >>> biases = {"b_enc": torch.zeros(1), "b_dec": torch.zeros(2)}
    >>> weights = {"W_enc": torch.ones(2, 1), "W_dec": torch.tensor([[1.0, 5.0]]), **biases}
    >>> _ = crosscoder.load_state_dict(weights)
    >>> intervention(crosscoder, [0], "replace").deltas(torch.tensor([[1.0, 2.0]]))  # where f is 3
    (tensor([[12.]]), None)
    """
    crosscoder = require_inference(crosscoder, "An intervention")
    _refuse_combination(crosscoder, how, model, max_activation, with_bias)
    chosen = _chosen(latents, crosscoder)
    W_dec = [decoder.detach()[chosen] for decoder in crosscoder.decoders]
    b_dec = [bias.detach() for bias in crosscoder.decoder_biases]
    targets = _targets(crosscoder.layout, how, model)
    directions: list[Tensor | None] = [None] * len(W_dec)
    constants: list[Tensor | None] = [None] * len(W_dec)
    for m in targets:
        if how == "steer":
            constants[m] = coefficient * (_amounts(max_activation, W_dec[m]) @ W_dec[m])
        else:
            directions[m] = _direction(W_dec, m, how, coefficient)
        if with_bias or how == "reconstruct":
            constants[m] = _direction(b_dec, m, how, coefficient)
    threshold: Any = getattr(crosscoder, "threshold", torch.zeros_like(crosscoder.b_enc))
    own = -coefficient if how == "reconstruct" else 0.0
    return Intervention(
        layout=crosscoder.layout,
        W_enc=crosscoder.W_enc.detach()[:, chosen],
        b_enc=crosscoder.b_enc.detach()[chosen],
        threshold=threshold.detach()[chosen],
        directions=tuple(directions),
        constants=tuple(constants),
        own=tuple(own if m in targets else 0.0 for m in range(len(W_dec))),
    )


def _direction(decoders: Sequence[Tensor], m: int, how: How, coefficient: float) -> Tensor:
    """What every latent adds to model m per unit of activation; the biases are one more latent, always on."""
    match how:
        case "replace":
            return coefficient * (decoders[1 - m] - decoders[m])
        case "add":
            return coefficient * decoders[1 - m]
        case "ablate":
            return -coefficient * decoders[m]
        case "scale":
            return (coefficient - 1) * decoders[m]
        case _:
            return coefficient * decoders[m]


def _targets(layout: StackedLayout, how: How, model: ModelName | None) -> Sequence[int]:
    if model is not None:
        return [layout.names.index(model)]
    return [0] if how in CARRIES else range(layout.n_models)


def _chosen(latents: Any, crosscoder: InferenceCrosscoder) -> slice | Tensor:
    if latents is None:
        return slice(None)  # which copies no weights
    chosen = latents if isinstance(latents, Tensor) else _numbers(latents)
    chosen = chosen.to(crosscoder.W_dec.device)
    if chosen.ndim == 1 and len(chosen) == 0:
        return chosen.long()
    if chosen.ndim != 1 or chosen.is_floating_point() or chosen.dtype == torch.bool:
        raise ValueError(f"latents must be indices, but are {chosen.dtype} of shape {tuple(chosen.shape)}. {_INDICES}")
    outside = chosen[(chosen < 0) | (chosen >= crosscoder.cfg.d_sae)]
    if len(outside):
        raise ValueError(f"There is no latent {int(outside[0])}: this crosscoder has {crosscoder.cfg.d_sae}, from 0.")
    if len(chosen.unique()) < len(chosen):
        raise ValueError("latents name a latent twice, which would count it twice. Give every latent once.")
    return chosen


_INDICES = (
    "Give a list such as [5], turn a mask into indices with mask.nonzero().flatten(), or take the index of a table: "
    "table[table.verdict == ...].index."
)


def _numbers(latents: Any) -> Tensor:
    values = np.array(latents)
    if values.size == 0:
        return torch.zeros(values.shape, dtype=torch.long)
    if values.dtype.kind not in "biuf":
        raise ValueError(f"latents must be indices, but are a {type(latents).__name__} of {values.dtype}. {_INDICES}")
    return torch.from_numpy(values.astype(np.int64) if values.dtype.kind in "iu" else values)


def _amounts(max_activation: Any, W_dec: Tensor) -> Tensor:
    values = max_activation if isinstance(max_activation, Tensor) else np.array(max_activation, dtype=np.float64)
    amounts = torch.as_tensor(values).to(W_dec)
    if amounts.ndim and len(amounts) != len(W_dec):
        raise ValueError(
            f"max_activation holds {len(amounts)} numbers for {len(W_dec)} latents: give one for each, in the order of "
            "latents, or one for all."
        )
    return amounts.expand(len(W_dec))


def _refuse_combination(
    crosscoder: InferenceCrosscoder, how: str, model: str | None, max_activation: Any, with_bias: bool
) -> None:
    layout = crosscoder.layout
    if how not in get_args(How):
        raise ValueError(f"how={how!r} is not one of {get_args(How)}.")
    if model is not None and model not in layout.names:
        raise ValueError(f"model={model!r} is not one of {layout.names}, nor None.")
    if how in CARRIES and (layout.n_models != 2 or not layout.same_width):
        raise ValueError(
            f"how={how!r} carries directions from one model into the other, but these models are {layout.d_models} "
            "wide: only two models of one width share a basis. Use 'ablate', 'scale' or 'steer'."
        )
    if (how == "steer") != (max_activation is not None):
        raise ValueError(
            "max_activation goes with how='steer', which adds what the latents write at that activation: take it from "
            "the column max_activation of diagnose. The other interventions use the activations on the tokens."
        )
    if with_bias and how not in ("replace", "ablate"):
        raise ValueError(f"with_bias=True belongs to how='replace' and how='ablate', not {how!r}.")


def _sum_present(*parts: Tensor | None) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return sum(present[1:], present[0]) if present else None
