"""State that the patches of one pair share while the pair runs."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class PatchState:
    """State of a pair's active patches; `HookedModelPair` holds one, `causal.patched` and generation set it."""

    unedited: dict[str, Tensor | None] = field(default_factory=dict[str, Tensor | None])
    """By hook name, the stacked activation of the running forward pass before any patch; None before the first pass. A
    hook without patches has no entry."""
    n_tokens_read: int = 0
    """Tokens that earlier passes of the running generation have read, so that a pass sees only those after them."""
    prompt_length: int | None = None
    """Length of the longest prompt of the running generation; None outside of one."""
