"""Which tokens every latent speaks for, by its decoder alone."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.causal.latents.latent_effects import logit_attribution

# Logits that are in memory at a time.
_MAX_LOGITS = 2**26


@dataclass(frozen=True)
class LogitLens:
    """The tokens whose logits each direction raises most and lowers most, the furthest first."""

    raised: Int[Tensor, "latent k"]
    raised_by: Float[Tensor, "latent k"]
    """In logits per unit of activation, before the final norm's division by the activation's size."""
    lowered: Int[Tensor, "latent k"]
    lowered_by: Float[Tensor, "latent k"]


@torch.no_grad()
def logit_lens(model: Any, directions: Float[Tensor, "latent d_model"], k: int = 8) -> LogitLens:
    """The furthest of what `logit_attribution` finds, without holding the whole vocabulary for all directions.

    Raises:
        ValueError: as `logit_attribution`.
    """
    parts: list[tuple[Tensor, ...]] = []
    d_vocab = int(model.W_U.shape[-1]) if hasattr(model, "W_U") else 1
    for some in directions.split(max(1, _MAX_LOGITS // d_vocab)):
        logits = logit_attribution(model, some)
        high, low = (logits.topk(min(k, d_vocab), largest=largest) for largest in (True, False))
        parts.append((high.indices, high.values, low.indices, low.values))
    return LogitLens(*(torch.cat(column) for column in zip(*parts, strict=True)))
