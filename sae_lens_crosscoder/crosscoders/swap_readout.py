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
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of

ONE_SIDED_RATIO = 0.2
"""Ratio of the two decoder norms below which a latent is one-sided: its Delta_norm is below 0.1 or above 0.9."""
MIN_COSINE = 0.8
"""Cosine from which two decoder directions count as one."""
_CHUNK = 1024


@dataclass(frozen=True)
class Encoder:
    """A linear map to all latents' pre-activations."""

    weight: Float[Tensor, "width d_sae"]
    bias: Float[Tensor, " d_sae"]


@dataclass(frozen=True)
class _Alone:
    """Encoder of one model alone: of its activation, then of what its own concepts write into it, once per slot."""

    encoder: Encoder
    own: tuple[Int[Tensor, " latent"], ...]
    """Latents of its own concepts that a slot cannot hold, for each slot where there are any."""


class SwapReadout:
    """Encodes one model's activation in the place of all, or the joint activation without one model.

    Every model has its mean replaced by the slot's, in the units of the slot: a constant that one model adds to all
    activations is no use of a latent.

    A slot is given only what its model can hold. What latents of the read model's own concepts write (`own_latents`)
    is taken out, by the joint code, before the activation stands in another slot: the encoder of that slot never saw
    these concepts in training, so it would take them for others. These latents themselves are read without it.

    Args:
        means: mean activation of all models side by side in each cell of tokens, in raw units; the last row is that of
            all tokens, the one that codes of one model are centred with.
        mean_code: mean joint code of all latents, to centre with what own concepts write.
        models: places of the two models to compare among the crosscoder's.
    """

    def __init__(
        self,
        crosscoder: InferenceCrosscoder,
        means: Float[Tensor, "cell d_in"],
        mean_code: Float[Tensor, " d_sae"],
        models: Sequence[int],
    ) -> None:
        self._crosscoder, self._models = crosscoder, tuple(models)
        layout = crosscoder.layout
        encoders = [part.detach().double() for part in crosscoder.encoders]
        scales = crosscoder.activation_scales.double()
        parts = [part.to(encoders[0]) for part in layout.split(means)]
        # What the slots add to the pre-activations where each holds its own mean, (cell, d_sae).
        at_mean = [part @ encoder.T for part, encoder in zip(parts, encoders, strict=True)]
        b_enc = crosscoder.b_enc.detach().double()
        self._swapped: list[_Alone] = []
        self._without: list[Encoder] = []
        for m in self._models:
            rows = torch.stack([scales[m] / scale * part for scale, part in zip(scales, encoders, strict=True)]).sum(
                dim=0
            )
            bias = b_enc + torch.stack(at_mean).sum(dim=0)[-1] - rows @ parts[m][-1]
            columns, own = [rows], list[Tensor]()
            for k, encoder in enumerate(encoders):
                if len(ids := own_latents(crosscoder, m, k)):
                    taken_out = (-scales[m] / scales[k] * encoder).index_fill(0, ids, 0)
                    written = mean_code[ids].double() @ crosscoder.decoders[m].detach()[ids].double()
                    bias = bias - taken_out @ written
                    columns.append(taken_out)
                    own.append(ids)
            self._swapped.append(_Alone(self._encoder(torch.cat(columns, dim=1), bias), tuple(own)))
            others = [encoder for k, encoder in enumerate(encoders) if k != m]
            # A one-hot column per cell adds the missing model's mean.
            self._without.append(self._encoder(torch.cat([*others, at_mean[m].T], dim=1), b_enc))

    def _encoder(self, rows: Float[Tensor, "d_sae width"], bias: Float[Tensor, " d_sae"]) -> Encoder:
        # Transposed views of contiguous rows, as crosscoders hold their encoders.
        dtype = self._crosscoder.dtype
        return Encoder(rows.to(dtype).contiguous().T, bias.to(dtype))

    def alone(
        self, activations: Float[Tensor, "token d_in"], joint: Float[Tensor, "token d_sae"]
    ) -> list[Float[Tensor, "token d_sae"]]:
        """Code of each compared model alone, given the joint code; sparse."""
        parts = self._crosscoder.layout.split(activations)
        codes: list[Tensor] = []
        for m, of in zip(self._models, self._swapped, strict=True):
            read = [parts[m], *(self._written(m, ids, joint) for ids in of.own)]
            codes.append(self._crosscoder.encoding(torch.cat(read, dim=1), of.encoder.weight, of.encoder.bias))
        return codes

    def _written(self, m: int, ids: Int[Tensor, " latent"], joint: Tensor) -> Float[Tensor, "token d_model"]:
        """What some latents write into a model."""
        pairs, values = pairs_of(joint)
        decoder = self._crosscoder.decoders[m].detach()
        on = torch.isin(pairs.latent, ids)
        written = decoder.new_zeros(len(joint), decoder.shape[1])
        return written.index_add_(0, pairs.token[on], values[on, None].to(decoder) * decoder[pairs.latent[on]])

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


@torch.no_grad()
def own_latents(crosscoder: InferenceCrosscoder, m: int, other: int) -> Int[Tensor, " latent"]:
    """Latents of concepts that a source has and another one lacks.

    They are one-sided between the two (`ONE_SIDED_RATIO`), and no other latent has their direction, or the opposite
    one, in either. A concept that one source uses less often has two latents, a shared one and a one-sided one that
    adds to it or takes it back: what such a one-sided latent writes is use of the shared one.
    """
    if m == other:
        return torch.zeros(0, dtype=torch.int64, device=crosscoder.W_dec.device)
    norms = crosscoder.decoder_norms.detach()
    one_sided = norms[:, other] < ONE_SIDED_RATIO * norms[:, m]
    rest = [
        torch.nn.functional.normalize(crosscoder.decoders[place].detach()[~one_sided], dim=-1) for place in (m, other)
    ]
    kept: list[Tensor] = []
    for ids in one_sided.nonzero().flatten().split(_CHUNK):
        directions = torch.nn.functional.normalize(crosscoder.decoders[m].detach()[ids], dim=-1)
        is_twin = torch.stack([((directions @ part.T).abs() >= MIN_COSINE).any(dim=1) for part in rest]).any(dim=0)
        kept.append(ids[~is_twin])
    return torch.cat(kept) if kept else one_sided.nonzero().flatten()
