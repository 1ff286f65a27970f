"""Swap readout: the code of each model alone, and the joint code without one model.

A joint code cannot say which model uses a latent: for models that are nearly alike, only the sum of an encoder's parts
is identified. So every slot of the encoder is given the same model's activation, after arXiv 2609.35210.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder


@dataclass(frozen=True)
class Encoder:
    """A linear map to all latents' pre-activations."""

    weight: Float[Tensor, "width d_sae"]
    bias: Float[Tensor, " d_sae"]


class SwapReadout:
    """Encodes one model's activation in the place of all, or the joint activation without one model.

    Every model has its mean replaced by the slot's, in the units of the slot: a constant that one model adds to all
    activations is no use of a latent.

    Args:
        means: mean activation of all models side by side in each cell of tokens, in raw units; the last row is that of
            all tokens, the one that codes of one model are centred with.
        models: places of the two models to compare among the crosscoder's.
    """

    def __init__(
        self, crosscoder: InferenceCrosscoder, means: Float[Tensor, "cell d_in"], models: Sequence[int]
    ) -> None:
        self._crosscoder, self._models = crosscoder, tuple(models)
        layout = crosscoder.layout
        encoders = [part.detach().double() for part in crosscoder.encoders]
        scales = crosscoder.activation_scales.double()
        parts = [part.to(encoders[0]) for part in layout.split(means)]
        # What the slots add to the pre-activations where each holds its own mean, (cell, d_sae).
        at_mean = [part @ encoder.T for part, encoder in zip(parts, encoders, strict=True)]
        b_enc = crosscoder.b_enc.detach().double()
        self._swapped: list[Encoder] = []
        self._without: list[Encoder] = []
        for m in self._models:
            rows = torch.stack([scales[m] / scale * part for scale, part in zip(scales, encoders, strict=True)]).sum(
                dim=0
            )
            self._swapped.append(self._encoder(rows, b_enc + torch.stack(at_mean).sum(dim=0)[-1] - rows @ parts[m][-1]))
            others = [encoder for k, encoder in enumerate(encoders) if k != m]
            # A one-hot column per cell adds the missing model's mean.
            self._without.append(self._encoder(torch.cat([*others, at_mean[m].T], dim=1), b_enc))

    def _encoder(self, rows: Float[Tensor, "d_sae width"], bias: Float[Tensor, " d_sae"]) -> Encoder:
        # Transposed views of contiguous rows, as crosscoders hold their encoders.
        dtype = self._crosscoder.dtype
        return Encoder(rows.to(dtype).contiguous().T, bias.to(dtype))

    def alone(self, activations: Float[Tensor, "token d_in"]) -> list[Float[Tensor, "token d_sae"]]:
        """Code of each compared model alone; sparse."""
        parts = self._crosscoder.layout.split(activations)
        return [
            self._crosscoder.encoding(parts[m].contiguous(), encoder.weight, encoder.bias)
            for m, encoder in zip(self._models, self._swapped, strict=True)
        ]

    def without(
        self, activations: Float[Tensor, "token d_in"], cells: Int[Tensor, " token"]
    ) -> list[Float[Tensor, "token d_sae"]]:
        """Joint code with each compared model's activation replaced by its mean in the token's cell; sparse."""
        parts = self._crosscoder.layout.split(activations)
        codes: list[Tensor] = []
        for m, encoder in zip(self._models, self._without, strict=True):
            others = [part for k, part in enumerate(parts) if k != m]
            n_cells = len(encoder.weight) - sum(part.shape[1] for part in others)
            one_hot = torch.nn.functional.one_hot(cells, n_cells).to(activations)
            codes.append(self._crosscoder.encoding(torch.cat([*others, one_hot], dim=1), encoder.weight, encoder.bias))
        return codes
