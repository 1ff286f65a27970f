"""Direct logit attribution: the tokens a decoder vector raises and lowers, through the final norm and unembedding."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments

_MAX_LOGITS = 2**26
"""Logits in memory at a time."""


@dataclass(frozen=True)
class LogitLens:
    """The tokens whose logits each direction raises and lowers most, strongest first."""

    raised: Int[Tensor, "latent k"]
    raised_by: Float[Tensor, "latent k"]
    """In logits per unit of activation, before the final norm's division by the activation's size."""
    lowered: Int[Tensor, "latent k"]
    lowered_by: Float[Tensor, "latent k"]


@validate_arguments
@torch.no_grad()
def logit_attribution(model: Any, directions: Float[Tensor, "latent d_model"]) -> Float[Tensor, "latent d_vocab"]:
    """Project directions of the residual stream onto the vocabulary, with the final norm's gain.

    The norm's division by the residual stream's size is left out, because it is the same for all tokens.

    Raises:
        ValueError: for a model without a readable final norm and unembedding.
    """
    if not hasattr(model, "ln_final") or not hasattr(model, "W_U"):
        raise ValueError(
            f"The model is a {type(model).__name__}, without ln_final and W_U: load it as 'HookedTransformer'."
        )
    W_U = model.W_U
    if directions.shape[-1] != len(W_U):
        raise ValueError(f"directions is {directions.shape[-1]} wide, but the model's residual stream is {len(W_U)}.")
    gain, centres = _gain(model.ln_final, W_U)
    directions = directions.to(W_U)
    if centres:
        directions = directions - directions.mean(dim=-1, keepdim=True)
    return ((directions * gain) @ W_U).float().cpu()


@validate_arguments
@torch.no_grad()
def logit_lens(model: Any, directions: Float[Tensor, "latent d_model"], k: int = 8) -> LogitLens:
    """The k highest and lowest of `logit_attribution`, in blocks that bound the memory.

    Raises:
        ValueError: as `logit_attribution`.
    """
    blocks: list[tuple[Tensor, ...]] = []
    d_vocab = int(model.W_U.shape[-1]) if hasattr(model, "W_U") else 1
    for block in directions.split(max(1, _MAX_LOGITS // d_vocab)):
        logits = logit_attribution(model, block)
        high, low = (logits.topk(min(k, d_vocab), largest=largest) for largest in (True, False))
        blocks.append((high.indices, high.values, low.indices, low.values))
    return LogitLens(*(torch.cat(column) for column in zip(*blocks, strict=True)))


def _gain(norm: Any, W_U: Float[Tensor, "d_model d_vocab"]) -> tuple[Float[Tensor, " d_model"], bool]:
    """The norm's factor per coordinate and whether it centres, found by applying it.

    Hosts store the gain differently: some norms of Hugging Face hold the gain minus 1.
    """
    signs = torch.ones(len(W_U), device=W_U.device, dtype=W_U.dtype)
    signs[1::2] = -1
    signs[-1] *= len(W_U) % 2 == 0 or 0.5  # keeps an odd coordinate from mattering to centring and scaling
    up, down, flat = (norm(x[None, None])[0, 0] for x in (signs, -signs, torch.ones_like(signs)))
    bias = (up + down) / 2
    return (up - down) / 2 * signs, bool((flat - bias).abs().max() < 0.1 * (up - bias).abs().max())
