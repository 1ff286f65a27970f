"""The outputs of several models on the same tokens, stacked into one result."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor
from transformer_lens.utils import lm_cross_entropy_loss

from sae_lens_crosscoder.models.hook_access import stack

ReturnType = Literal["logits", "loss", "both"] | None


def stacked_outputs(
    outputs: Sequence[Tensor | None],
    tokens: Int[Tensor, "batch pos"],
    return_type: ReturnType,
    loss_per_token: bool,
    stopped_early: bool,
) -> Any:
    """Logits (batch, pos, model, vocab), losses (model,) or (batch, pos - 1, model), or both.

    None if `return_type` is None or a model returned nothing; the stacked residual stream if the models stopped at a
    layer. The result is on the base model's device.
    """
    present = [output for output in outputs if output is not None]
    if return_type is None or len(present) < len(outputs):
        return None
    if stopped_early:
        return stack(present)
    sizes = [output.shape[-1] for output in present]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"The models' vocabularies differ in size ({sizes}), so logits cannot be stacked. Run each model of "
            "`pair.members` on its own, or pass return_type=None."
        )
    device = present[0].device
    logits = torch.stack([output.to(device) for output in present], dim=-2)
    if return_type == "logits":
        return logits
    losses = [lm_cross_entropy_loss(output, tokens.to(output.device), per_token=loss_per_token) for output in present]
    loss = torch.stack([loss.to(device) for loss in losses], dim=-1)
    return loss if return_type == "loss" else (logits, loss)
