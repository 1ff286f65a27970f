"""Shares of latents in a contrast: pure maths on means."""

import torch
from jaxtyping import Float
from torch import Tensor


def shares(
    changes: Float[Tensor, " d_sae"], directions: Float[Tensor, "d_sae d_model"], contrast: Float[Tensor, " d_model"]
) -> Float[Tensor, " d_sae"]:
    """`share_j = Df_j <d_j, Dmu> / |Dmu|^2`: how much of a contrast each latent writes; nan where the groups are equal.

    They add up to the coverage, 1 where the crosscoder reconstructs the contrast. A latent that fires on the negative
    prompts counts as well: its change is negative.

    Args:
        changes: Df_j, the difference of mean activations between positive and negative prompts.
        directions: decoders of the model whose contrast it is, or `d^chat - d^base` for the difference of the models.
        contrast: Dmu, the difference of the mean activations of that model, or of chat - base.

    >>> shares(torch.tensor([2.0, -1.0]), torch.tensor([[1.0, 0.0], [-2.0, 3.0]]), torch.tensor([4.0, 0.0]))
    tensor([0.5000, 0.5000])
    """
    return changes * (directions @ (contrast / contrast.square().sum()))


def delta_contrast(
    changes: Float[Tensor, " d_sae"], base: Float[Tensor, "d_sae _"], chat: Float[Tensor, "d_sae _"]
) -> float:
    """Delta_norm of what all latents together write of a contrast, `v^m = sum_j Df_j d_j^m`; no latent is chosen.

    0 if only the base model has it, 1/2 if both have it equally, 1 if only the chat model has it; nan if neither.

    >>> delta_contrast(torch.tensor([1.0]), torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 0.0]]))
    0.75
    """
    norms = torch.stack([torch.linalg.vector_norm(changes @ decoders) for decoders in (base, chat)])
    return float(((norms[1] - norms[0]) / norms.max() + 1) / 2)
