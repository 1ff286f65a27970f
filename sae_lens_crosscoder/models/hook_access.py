"""Which hooks of several models can be stacked, and how one model is run with values written at its hooks."""

import difflib
import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.stacking import StackedLayout

# SAELens flattens (head, d_head) after we have stacked on d_head, which would interleave the models; attention
# patterns and scores have no model axis to stack on. The second line are TransformerBridge's names for the same.
_SPLIT_BY_HEAD = re.compile(
    r"(^|\.)hook_(q|k|v|z|result|rot_q|rot_k|attn_scores|pattern)$"
    r"|\.attn\.([qkv]\.hook_out|o\.hook_in)$"
)


def is_split_by_head(hook_name: str) -> bool:
    """Whether a hook's name says that its activations have a head axis.

    >>> is_split_by_head("blocks.3.attn.hook_z"), is_split_by_head("blocks.3.hook_resid_post")
    (True, False)
    """
    return _SPLIT_BY_HEAD.search(hook_name) is not None


def common_hook_names(models: Iterable[Any]) -> list[str]:
    """Names of the hooks that all models have, in the first model's order.

    TransformerBridge resolves all hooks and aliases at every access of `hook_dict`, so it is read once per model.
    """
    first, *others = [model.hook_dict for model in models]
    return [name for name in first if all(name in hooks for hooks in others)]


def validate_hook_name(hook_name: str, shared: Collection[str]) -> None:
    """Raise a ValueError that says why `hook_name` is not one of the `shared` hooks, if it is not."""
    if hook_name in shared:
        return
    if is_split_by_head(hook_name):
        raise ValueError(
            f"Hook {hook_name!r} is split by attention head, so flattening would interleave the models. Use the "
            "residual stream, an MLP output or an attention output, such as 'blocks.0.hook_resid_post'."
        )
    near = difflib.get_close_matches(hook_name, shared, n=3)
    hint = f"Did you mean one of {near}?" if near else f"There are {len(shared)} hooks: see hook_dict."
    raise ValueError(f"The models have no common hook {hook_name!r}. {hint}")


def cached_activation(cache: Any, hook_name: str) -> Tensor:
    """One model's activation (batch, pos, d_model) from its cache, or a ValueError that says why there is none."""
    if hook_name not in cache:
        raise ValueError(
            f"Hook {hook_name!r} did not run: the models have it, but do not use it as they are configured, or stop "
            "before it. Use the residual stream, such as 'blocks.0.hook_resid_post', or switch it on in both models."
        )
    if not is_stackable(cache[hook_name]):
        raise ValueError(
            f"Hook {hook_name!r} gives shape {tuple(cache[hook_name].shape)}, but only (batch, pos, width) can be "
            "stacked: with a head axis, flattening would interleave the models. Use the residual stream, an MLP "
            "output or an attention output."
        )
    return cache[hook_name]


def activation_at(model: Any, tokens: Tensor, hook_name: str) -> Tensor:
    """One model's activation (batch, pos, d_model) at a hook, from a pass that stops right after the hook's layer."""
    stop = extract_stop_at_layer_from_tlens_hook_name(hook_name)
    _, cache = model.run_with_cache(tokens.to(device_of(model)), names_filter=[hook_name], stop_at_layer=stop)
    return cached_activation(cache, hook_name)


def is_stackable(activation: Tensor | None) -> bool:
    """Whether there is an activation, and it is (batch, pos, width)."""
    return activation is not None and activation.ndim == 3


def stack(parts: Sequence[Tensor]) -> Tensor:
    return StackedLayout(tuple(part.shape[-1] for part in parts)).stack(parts)


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


@contextmanager
def replaced_activations(model: Any, values: Mapping[str, Tensor]) -> Generator[None]:
    """Run a model with the activations at some hooks replaced."""

    def write(value: Tensor) -> Callable[..., Tensor]:
        def replace(activation: Tensor, hook: HookPoint) -> Tensor:
            return value

        return replace

    with model.hooks(fwd_hooks=[(name, write(value)) for name, value in values.items()]):
        yield
