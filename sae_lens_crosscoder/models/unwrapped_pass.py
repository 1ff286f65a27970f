"""Reading the residual stream of a TransformerBridge through the Hugging Face modules that it wraps.

A bridge computes what these compute, and calls hooks, wrappers and its own attention on the way, for hooks that nobody
has set. On a small model that takes a third of a pass.
"""

import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformer_lens.model_bridge import TransformerBridge
from transformer_lens.model_bridge.generalized_components.base import GeneralizedComponent

from sae_lens_crosscoder.models.equal_blocks import is_unhooked
from sae_lens_crosscoder.stacking import split_hooks

_RESIDUAL_HOOK = re.compile(r"blocks\.\d+\.hook_resid_(pre|post)")
_ARGUMENTS = {"stop_at_layer", "prepend_bos"}


class _PassIsOver(Exception):
    """Ends a pass in which all hooks were read."""


def can_read_unwrapped(model: Any, hook_name: str, arguments: Mapping[str, Any]) -> bool:
    """True if `run_unwrapped` can read the hook: a plain bridge of unsplit weights, without hooks and gradients."""
    if type(model) is not TransformerBridge or not all(map(_RESIDUAL_HOOK.fullmatch, split_hooks(hook_name))):
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled(model.W_E.device.type) or not set(arguments) <= _ARGUMENTS:
        return False
    inner: Any = model.original_model
    if model.compatibility_mode or inner.training or inner.config.is_encoder_decoder:
        return False
    return is_unhooked(model, list(model.blocks)) and _has_unsplit_weights(model)


def _has_unsplit_weights(model: Any) -> bool:
    """True if the bridge computes with Hugging Face's own parameters, not with parts of joint ones."""
    with _unwrapped(model.original_model):
        of_modules = {id(parameter) for parameter in model.original_model.parameters()}
    return all(id(parameter) in of_modules for block in model.blocks for parameter in block.parameters())


def called_block(block: nn.Module) -> nn.Module:
    """The module that an unwrapped pass calls for a bridge's block; other blocks are called themselves."""
    while isinstance(block, GeneralizedComponent) and isinstance(block.original_component, nn.Module):
        block = block.original_component
    return block


def run_unwrapped(
    model: Any, tokens: Int[Tensor, "batch pos"], names_filter: Sequence[str], **_: Any
) -> tuple[None, dict[str, Tensor]]:
    """Activations at hooks of the residual stream by name, from a pass that `can_read_unwrapped` allows.

    It ends at the last of the hooks.
    """
    read: dict[str, Tensor] = {}

    def keep(name: str, activation: Any) -> None:
        read[name] = activation[0] if isinstance(activation, tuple) else activation
        if len(read) == len(names_filter):
            raise _PassIsOver

    def keep_input(name: str, block: nn.Module, args: Any, kwargs: Mapping[str, Any]) -> None:
        keep(name, args or kwargs["hidden_states"])

    def keep_output(name: str, block: nn.Module, args: Any, output: Any) -> None:
        keep(name, output)

    handles: list[RemovableHandle] = []
    for name in names_filter:
        layer, kind = name.split(".")[1:]
        block = called_block(model.blocks[int(layer)])
        if kind == "hook_resid_pre":
            handles.append(block.register_forward_pre_hook(partial(keep_input, name), with_kwargs=True))
        else:
            handles.append(block.register_forward_hook(partial(keep_output, name)))
    try:
        with _unwrapped(model.original_model), suppress(_PassIsOver):
            model.original_model(input_ids=tokens, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return None, read


@contextmanager
def _unwrapped(model: nn.Module) -> Generator[None]:
    """Context in which Hugging Face's modules call each other without the bridge's components in between."""
    replaced: list[tuple[dict[str, nn.Module | None], str, nn.Module]] = []

    def unwrap(module: nn.Module) -> None:
        children = module._modules  # pyright: ignore[reportPrivateUsage]
        for name, child in list(children.items()):
            if child is None:
                continue
            inner = called_block(child)
            if inner is not child:
                replaced.append((children, name, child))
                children[name] = inner
            unwrap(inner)

    try:
        unwrap(model)
        yield
    finally:
        for children, name, child in reversed(replaced):
            children[name] = child
