"""First blocks of models that compute the same: equal weights, as of a fine-tune or a null that left layers alone."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from sae_lens.load_model import HookedProxyLM
from torch import Tensor, nn
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.models.adapters import AdapterView

# Parts behind the last block, under the names of TransformerLens and of Hugging Face's architectures.
_BEHIND = {"ln_final", "unembed", "norm", "ln_f", "final_layernorm", "final_layer_norm", "lm_head", "embed_out"}
# Settings of a model that do not enter its activations.
_NAMES = {"model_name", "tokenizer_name", "original_architecture", "seed", "device", "_name_or_path"}


def equal_blocks(models: Iterable[Any]) -> list[Sequence[nn.Module]]:
    """For each model, its first blocks that compute what the first model's compute.

    Weights are compared at every call, block by block up to the first difference, so that no change to a model goes
    unnoticed. That costs one reading of the equal weights, and next to nothing for models that were tuned as a whole.
    """
    members = list(models)
    blocks = [[] if isinstance(model, AdapterView) else blocks_of(model) for model in members]
    if torch.is_grad_enabled() or any(block.training for own in blocks for block in own):  # dropout differs
        blocks = [[] for _ in members]
    counts = [_n_equal(members[0], other, blocks[0], own) for other, own in zip(members[1:], blocks[1:], strict=True)]
    return [own[:n] for own, n in zip(blocks, [max(counts, default=0), *counts], strict=False)]


def blocks_of(model: Any) -> list[nn.Module]:
    """The modules of a hooked model's transformer blocks, in order; none if they are not known."""
    if not isinstance(model, HookedProxyLM):
        return list(getattr(model, "blocks", ()))
    inner: Any = model.model
    n_blocks = inner.config.get_text_config().num_hidden_layers
    lists = [list(module) for module in inner.modules() if isinstance(module, nn.ModuleList)]
    return next((modules for modules in lists if len(modules) == n_blocks), [])


def _n_equal(first: Any, second: Any, first_blocks: Sequence[nn.Module], second_blocks: Sequence[nn.Module]) -> int:
    """Number of first blocks that compute the same, given the same tokens."""
    n = len(first_blocks)
    if first is not second:
        if type(first) is not type(second) or _settings(first) != _settings(second):
            return 0
        pairs = zip(first_blocks, second_blocks, strict=False)
        n = next((i for i, (a, b) in enumerate(pairs) if not _are_equal(_tensors(a), _tensors(b))), n)
        if n == 0 or not _are_equal(_embeddings(first, first_blocks), _embeddings(second, second_blocks)):
            return 0
    return n if is_unhooked(first, first_blocks[:n]) and is_unhooked(second, second_blocks[:n]) else 0


def _settings(model: Any) -> dict[str, Any]:
    """What determines a model's activations beside its weights and tokens."""
    settings: dict[str, Any] = vars(model.cfg) if not isinstance(model, HookedProxyLM) else _config_of(model.model)
    tokenizer = getattr(model, "tokenizer", None)
    padding = (getattr(tokenizer, "padding_side", None), getattr(tokenizer, "pad_token_id", None))
    return {name: value for name, value in settings.items() if name not in _NAMES} | {"padding": padding}


def _config_of(model: Any) -> dict[str, Any]:
    return model.config.to_dict()


def _embeddings(model: Any, blocks: Sequence[nn.Module]) -> list[Tensor]:
    """All weights and buffers before the blocks."""
    inside = {id(tensor) for block in blocks for tensor in _tensors(block)}
    named = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    return [tensor for name, tensor in named if id(tensor) not in inside and _BEHIND.isdisjoint(name.split("."))]


def is_unhooked(model: Any, blocks: Sequence[nn.Module]) -> bool:
    """True if nobody has a hook on the blocks or before them; the hosts' own, which only read, do not count."""
    if isinstance(model, HookedProxyLM):  # its hook points are not on the modules
        points, modules = list(model.hook_dict.values()), list(model.model.modules())
    else:
        before = [part for name, part in model.named_children() if name not in _BEHIND and name != "blocks"]
        modules = [module for part in (*blocks, *before) for module in part.modules()]
        points = [module for module in modules if isinstance(module, HookPoint)]
    return not any(map(_hooks, points)) and all(_is_of_host(hook) for module in modules for hook in _hooks(module))


def _hooks(module: nn.Module) -> list[Any]:
    return [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]  # pyright: ignore[reportPrivateUsage]


def _is_of_host(hook: Any) -> bool:
    return str(getattr(hook, "__module__", "")).partition(".")[0] in ("transformers", "transformer_lens", "sae_lens")


def _tensors(module: nn.Module) -> list[Tensor]:
    """Parameters and buffers, the smallest first: a difference shows in them as well, and sooner."""
    tensors = [*module.parameters(), *module.buffers()]
    return sorted(tensors, key=Tensor.numel)


def _are_equal(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    return len(first) == len(second) and all(_is_equal(a, b) for a, b in zip(first, second, strict=True))


def _is_equal(a: Tensor, b: Tensor) -> bool:
    return a.device == b.device and a.dtype == b.dtype and torch.equal(a, b)
