"""What activations must be before anything is computed from them."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout


class NonFiniteError(ValueError):
    """NaN or infinity where numbers were expected; the message names the model and the place."""


def require_finite(activations: Float[Tensor, "batch d_in"], layout: StackedLayout, where: str) -> None:
    """Raise unless activations are one row per token, as wide as the layout, and all finite.

    Args:
        where: completes the sentence, such as "at step 3".
    """
    if activations.ndim != 2:
        raise ValueError(
            f"Activations must be (token, d_in), but those {where} have shape {tuple(activations.shape)}: flatten "
            "(batch, pos, d_in) with activations.flatten(0, 1)."
        )
    parts = layout.split(activations)  # which refuses another width
    if torch.isfinite(activations.sum()):  # one pass, where it does not overflow; NaN and infinity always show in it
        return
    for name, part in zip(layout.names, parts, strict=True):
        if torch.isfinite(part).all():
            continue
        n_bad = int((~torch.isfinite(part)).any(dim=-1).sum())
        raise NonFiniteError(
            f"The {name} model's activations are NaN or infinite on {n_bad} of {len(part)} tokens {where}. Look at "
            "that model's dtype (float16 overflows where bfloat16 does not) and at the hook."
        )
