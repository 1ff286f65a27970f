"""Hugging Face's own hidden states, to check that a hook reads the residual stream it is named after."""

import re
from contextlib import nullcontext
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.load_model import HookedProxyLM
from torch import Tensor
from transformers import PreTrainedModel

from sae_lens_crosscoder.models.adapters import AdapterView
from sae_lens_crosscoder.models.hook_access import activation_at, device_of

_BEFORE_BLOCK = re.compile(r"blocks\.(\d+)\.hook_(?:resid_pre|in)")
_AFTER_BLOCK = re.compile(r"blocks\.(\d+)\.hook_(?:resid_post|out)|(?:\w+\.)*(?:layers|h)\.(\d+)")

# Rounding in bfloat16 moves an activation by less than 1 % of its norm; folded or centred weights by far more.
_MAX_DEVIATION = 0.02


def hidden_state_index(hook_name: str) -> int | None:
    """Index of the hook's activation in Hugging Face's `hidden_states`; None for a hook inside a block.

    >>> [hidden_state_index(f"blocks.3.hook_{name}") for name in ("resid_pre", "resid_post", "mlp_out")]
    [3, 4, None]
    >>> hidden_state_index("model.layers.3"), hidden_state_index("model.layers.3.mlp")
    (4, None)
    """
    before, after = _BEFORE_BLOCK.fullmatch(hook_name), _AFTER_BLOCK.fullmatch(hook_name)
    if before is not None:
        return int(before[1])
    return None if after is None else int(after[1] or after[2]) + 1


def hidden_state(model: Any, tokens: Int[Tensor, "batch pos"], index: int) -> Float[Tensor, "batch pos d_model"] | None:
    """Hugging Face's hidden state, or None if the model has none or its last one, which the final norm has changed."""
    inner = model.model if isinstance(model, HookedProxyLM) else getattr(model, "original_model", None)
    if not isinstance(inner, PreTrainedModel):
        return None
    tokens = tokens.to(device_of(model))
    with model.shared.running(model) if isinstance(model, AdapterView) else nullcontext():
        outputs: Any = inner(tokens, output_hidden_states=True, use_cache=False)
    states = getattr(outputs, "hidden_states", None) or ()
    return states[index] if index < len(states) - 1 else None


@torch.no_grad()
def validate_hidden_state(model: Any, name: str, tokens: Int[Tensor, "batch pos"], hook_name: str) -> bool:
    """Compare a model's activation at a hook with Hugging Face's hidden state for that layer.

    Args:
        name: the model's name in the error, such as "chat".

    Returns:
        True if the two could be compared: the model runs a Hugging Face model, and the hook is between two blocks.

    Raises:
        ValueError: if they differ by more than rounding.
    """
    index = hidden_state_index(hook_name)
    expected = None if index is None else hidden_state(model, tokens, index)
    if expected is None:
        return False
    actual = activation_at(model, tokens, hook_name)
    deviation = float(_deviation(actual, expected)) if actual.shape == expected.shape else float("inf")
    if not deviation <= _MAX_DEVIATION:
        raise ValueError(
            f"The {name} model's activation at {hook_name} is not Hugging Face's hidden_states[{index}]: it differs by "
            f"{deviation:.0%} of its norm. Load raw weights (no folding or centring), and remove hooks that edit them."
        )
    return True


def _deviation(actual: Float[Tensor, "batch pos d_model"], expected: Float[Tensor, "batch pos d_model"]) -> Tensor:
    """Norm of the error, relative to the activation's: the median over tokens."""
    error = (actual.float() - expected.float().to(actual.device)).norm(dim=-1)
    relative = error / expected.float().norm(dim=-1).to(error)
    return torch.where(error == 0, error, relative).median()  # an embedded padding token may be 0
