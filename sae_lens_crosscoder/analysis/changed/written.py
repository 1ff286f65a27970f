"""The energy of the models' difference that a latent writes, on one set of rows and along a contrast."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.analysis.contrasts.group_differences import GroupDifferences
from sae_lens_crosscoder.analysis.contrasts.shares import shares
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_ROWS = 256


@torch.no_grad()
def written_energy(crosscoder: InferenceCrosscoder, rows: Float[Tensor, "row d_in"]) -> Float[Tensor, " d_sae"]:
    """`E_t[f_tj <d_j^chat - d_j^base, h_t^chat - h_t^base>] / E_t |h_t^base|^2` of every latent, in float64.

    Averages over rows, not over their mean, so that a latent that writes at one place of an answer counts as well.

    Args:
        rows: raw stacked activations of two models of one width.
    """
    layout = crosscoder.layout
    base_decoder, chat_decoder = (decoder.detach().double() for decoder in crosscoder.decoders)
    directions = (chat_decoder - base_decoder).T
    total = torch.zeros(crosscoder.cfg.d_sae, dtype=torch.float64, device=crosscoder.W_dec.device)
    energy = 0.0
    for part in rows.to(crosscoder.W_dec.device).split(_ROWS):
        base, chat = layout.split(part.double())
        total += (crosscoder.encode(part.to(crosscoder.W_dec)).double() * ((chat - base) @ directions)).sum(dim=0)
        energy += base.square().sum().item()
    return (total / energy).cpu()


def written_contrast(crosscoder: InferenceCrosscoder, contrast: ContrastRows) -> Float[Tensor, " d_sae"]:
    """v_j, the energy that a latent writes on positive prompts less that on negative ones, not on those held out."""
    positive, negative = contrast.part(held_out=False)
    return written_energy(crosscoder, positive) - written_energy(crosscoder, negative)


def written_mean(
    crosscoder: InferenceCrosscoder, differences: GroupDifferences
) -> tuple[Float[Tensor, " d_sae"], Float[Tensor, " d_sae"]]:
    """`u_j = Df_j <d_j^chat - d_j^base, e> / |Dmu^base|` of every latent, and its standard error over prompts.

    e is the direction of the contrast in chat - base. u is how much of it a latent writes, relative to how far the
    groups are apart in the base model, so that it can be compared between pairs; a share cannot.
    """
    layout = crosscoder.layout
    base_decoder, chat_decoder = (decoder.detach().double().cpu() for decoder in crosscoder.decoders)
    base, chat = layout.split(differences.activations)
    contrast = chat - base
    scale = contrast.norm() / base.norm()
    ones = torch.ones_like(differences.feature_acts)
    per_unit = shares(ones, chat_decoder - base_decoder, contrast) * scale
    return differences.feature_acts * per_unit, differences.standard_error * per_unit.abs()
