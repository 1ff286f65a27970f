"""The outputs of several models on the same tokens, stacked into one result."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
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
    """Logits (batch, pos, model, vocab), losses (model,) or (batch, pos - 1, model), or both, over the common ids.

    None if `return_type` is None or a model returned nothing; the stacked residual stream if the models stopped at a
    layer. The result is on the base model's device.
    """
    present = [output for output in outputs if output is not None]
    if return_type is None or len(present) < len(outputs):
        return None
    if stopped_early:
        return stack(present)
    device = present[0].device
    present = over_common_ids(*present)
    logits = torch.stack([output.to(device) for output in present], dim=-2)
    if return_type == "logits":
        return logits
    _validate_common(tokens, logits.shape[-1])
    losses = [lm_cross_entropy_loss(output, tokens.to(output.device), per_token=loss_per_token) for output in present]
    loss = torch.stack([loss.to(device) for loss in losses], dim=-1)
    return loss if return_type == "loss" else (logits, loss)


def over_common_ids(*logits: Float[Tensor, "*batch _"]) -> tuple[Float[Tensor, "*batch d_vocab"], ...]:
    """Cut each model's logits to the ids that all models have.

    Models of one tokenizer may have vocabularies of different size: padding rows or control tokens added at the end.

    >>> [tuple(cut.shape) for cut in over_common_ids(torch.zeros(3, 50), torch.zeros(3, 64))]
    [(3, 50), (3, 50)]
    """
    d_vocab = min(output.shape[-1] for output in logits)
    return tuple(output[..., :d_vocab] for output in logits)


def _validate_common(tokens: Int[Tensor, "batch pos"], d_vocab: int) -> None:
    largest = int(tokens.max())
    if largest >= d_vocab:
        raise ValueError(
            f"tokens contains the id {largest}, but the models have only the ids below {d_vocab} in common. A loss is "
            "defined for tokens of both models: run each model of `pair.members` on its own, or use other tokens."
        )
