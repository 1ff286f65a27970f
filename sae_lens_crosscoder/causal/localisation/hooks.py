"""The hooks to look at: the residual stream after each block, in order."""

import re
from collections.abc import Sequence

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import split_models

MAX_HOOKS = 32
_AFTER_BLOCK = re.compile(r"(?:blocks\.(\d+)\.hook_resid_post|(?:\w+\.)*(?:layers|h)\.(\d+))")


def block_of(hook_name: str) -> int | None:
    """Index of the block that the hook reads the residual stream after; None for another hook.

    >>> block_of("blocks.3.hook_resid_post"), block_of("model.layers.7"), block_of("blocks.3.hook_mlp_out")
    (3, 7, None)
    """
    match = _AFTER_BLOCK.fullmatch(hook_name)
    return None if match is None else int(match[1] or match[2])


@validate_arguments
def residual_hooks(pair: HookedModelPair, every: int | None = None) -> tuple[str, ...]:
    """Hooks of the residual stream after each block that both models have, in order.

    Args:
        every: take each n-th block, counted so that the last one is among them; by default as few as are needed to
            have at most 32 hooks.

    Raises:
        ValueError: for models without such hooks.
    """
    named = sorted((block, name) for name in pair.hook_dict if (block := block_of(name)) is not None)
    if not named:
        raise ValueError(
            "The models have no common hook on the residual stream after a block, such as 'blocks.0.hook_resid_post'. "
            "Pass hook_names."
        )
    if every is not None and every < 1:
        raise ValueError(f"every={every} must be at least 1: it takes each n-th block.")
    every = every or -(-len(named) // MAX_HOOKS)
    return tuple(name for _, name in named[::-1][::every][::-1])


def short_name(hook_name: str) -> str:
    """A hook's name for tables and sentences: "block 3", or the hook's own name."""
    block = block_of(hook_name)
    return hook_name if block is None else f"block {block}"


def validate_hooks(pair: HookedModelPair, hook_names: Sequence[str]) -> None:
    """Raise a ValueError for no hooks, or one that the pair does not have."""
    if not hook_names:
        raise ValueError("`hook_names` is empty: name at least one hook, such as 'blocks.0.hook_resid_post'.")
    for hook_name in hook_names:
        if len(split_models(hook_name)) > 1:
            raise ValueError(
                f"hook_names has a hook per model, {hook_name!r}, but the models' residual streams are compared at the "
                "same hooks. Name hooks that both models have."
            )
        pair.validate_hook(hook_name)
