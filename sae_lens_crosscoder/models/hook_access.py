"""Hooks of several models: the common ones that can be stacked, reading them, and replacing their activations."""

import difflib
import re
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from sae_lens.util import extract_stop_at_layer_from_tlens_hook_name
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.stacking import StackedLayout, split_hooks, split_models

# SAELens flattens (head, d_head) after we have stacked on d_head, which would interleave the models; attention
# patterns and scores have no model axis to stack on. The second line has TransformerBridge's names of the same hooks.
_SPLIT_BY_HEAD = re.compile(
    r"(^|\.)hook_(q|k|v|z|result|rot_q|rot_k|attn_scores|pattern)$"
    r"|\.attn\.([qkv]\.hook_out|o\.hook_in)$"
)


def is_split_by_head(hook_name: str) -> bool:
    """True if activations at the hook have a head axis, judged by its name.

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


def validate_common_hooks(names: Collection[str], models: Iterable[Any]) -> None:
    """Raise a ValueError if models share no hook."""
    if names:
        return
    kinds = " and ".join(dict.fromkeys(type(model).__name__ for model in models))
    raise ValueError(
        f"The models ({kinds}) have no hook name in common. Load both in the same way: as HookedTransformer or "
        "TransformerBridge ('blocks.0.hook_resid_post'), or both as HookedProxyLM ('model.layers.0')."
    )


def validate_one_hook_each(hook_name: str, n_models: int) -> None:
    """Raise a ValueError for a hook per model unless there is exactly one for each."""
    names = split_models(hook_name)
    if len(names) not in (1, n_models):
        raise ValueError(
            f"The hook {hook_name!r} names {len(names)} hooks for {n_models} models. Name one hook per model, in the "
            "order of the models, or a single hook for all of them."
        )
    if len(names) > 1 and any(len(split_hooks(name)) > 1 for name in names):
        raise ValueError(
            f"The hook {hook_name!r} names several hooks per model. Name one hook for each model, joined by '|', or "
            "join hooks that all models have by '+'."
        )


def validate_hook_per_model(hook_name: str, models: Iterable[Any]) -> None:
    """Raise a ValueError unless a name joined by `|` has one hook for each model, which that model has."""
    members = list(models)
    validate_one_hook_each(hook_name, len(members))
    for name, model in zip(split_models(hook_name), members, strict=True):
        validate_hook_name(name, [hook for hook in model.hook_dict if not is_split_by_head(hook)])


def validate_hook_name(hook_name: str, common: Collection[str]) -> None:
    """Raise a ValueError with the reason if `hook_name` is not one of the `common` hooks."""
    if hook_name in common:
        return
    if is_split_by_head(hook_name):
        raise ValueError(
            f"Hook {hook_name!r} is split by attention head, so flattening would interleave the models. Use the "
            "residual stream, an MLP output or an attention output, such as 'blocks.0.hook_resid_post'."
        )
    near = difflib.get_close_matches(hook_name, common, n=3)
    hint = f"Did you mean one of {near}?" if near else f"There are {len(common)} hooks: see hook_dict."
    raise ValueError(f"The models have no common hook {hook_name!r}. {hint}")


def cached_activation(cache: Any, hook_name: str) -> Float[Tensor, "batch pos d_model"]:
    """One model's activation from its cache.

    Raises:
        ValueError: for a hook that did not run, or whose activation is not (batch, pos, d_model).
    """
    if hook_name not in cache:
        raise ValueError(
            f"Hook {hook_name!r} did not run: the models do not use it as configured, or stop before it. Use the "
            "residual stream, such as 'blocks.0.hook_resid_post', or enable the hook in both models."
        )
    activation = cache[hook_name]
    if not is_stackable(activation):
        raise ValueError(
            f"Hook {hook_name!r} has shape {tuple(activation.shape)}, expected (batch, pos, width): flattening a head "
            "axis would interleave the models. Use the residual stream, an MLP output or an attention output."
        )
    return activation


def activation_at(
    model: Any, tokens: Int[Tensor, "batch pos"], hook_name: str, **model_kwargs: Any
) -> Float[Tensor, "batch pos _"]:
    """One model's activation at a hook, or at several joined ones side by side; see `activations_at`."""
    parts = activations_at(model, tokens, hook_name, **model_kwargs)
    return parts[0] if len(parts) == 1 else stack(parts)


def activations_at(
    model: Any, tokens: Int[Tensor, "batch pos"], hook_name: str, **model_kwargs: Any
) -> list[Float[Tensor, "batch pos _"]]:
    """One model's activation at each of joined hooks, from one forward pass that stops right after the last layer."""
    names = split_hooks(hook_name)
    options: dict[str, Any] = {"names_filter": list(names), "stop_at_layer": stop_after(hook_name), **model_kwargs}
    _, cache = model.run_with_cache(tokens.to(device_of(model)), **options)
    return [cached_activation(cache, name) for name in names]


def stop_after(hook_name: str) -> int | None:
    """The layer at which a forward pass can stop that reads a hook, or several joined ones; None if at none.

    >>> stop_after("blocks.1.hook_resid_post+blocks.0.hook_resid_post"), stop_after("ln_final.hook_normalized")
    (2, None)
    """
    stops = [extract_stop_at_layer_from_tlens_hook_name(name) for name in split_hooks(hook_name)]
    known = [stop for stop in stops if stop is not None]
    return max(known) if len(known) == len(stops) else None


def is_stackable(activation: Tensor | None) -> bool:
    """True for an activation of shape (batch, pos, width)."""
    return activation is not None and activation.ndim == 3


def stack(parts: Sequence[Tensor]) -> Tensor:
    """Concatenate activations of any widths on the last axis."""
    return StackedLayout(tuple(part.shape[-1] for part in parts)).stack(parts)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter."""
    return next(model.parameters()).device


@contextmanager
def replaced_activations(model: Any, values: Mapping[str, Tensor]) -> Generator[None]:
    """Run a model with the activations at some hooks replaced, by hook name."""

    def replace_by(value: Tensor) -> Callable[..., Tensor]:
        def replace(activation: Tensor, hook: HookPoint) -> Tensor:
            return value

        return replace

    with model.hooks(fwd_hooks=[(name, replace_by(value)) for name, value in values.items()]):
        yield
