"""Sizes of language models, computed from their configs alone: no weights are downloaded, read or allocated."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.adapter_files import split_adapter
from sae_lens_crosscoder.models.hook_access import stop_after
from sae_lens_crosscoder.models.loading import official_name, split_jitter, usable_model_class, validate_loadable
from sae_lens_crosscoder.models.tiny import TINY_MODELS
from sae_lens_crosscoder.models.tiny.models import new_tiny_model


@dataclass(frozen=True)
class ModelSize:
    """The size of a model and of a forward pass up to a hook, in numbers (not bytes)."""

    name: str
    n_params: int
    """Parameters of the whole model as its class holds it; HookedTransformer has a separate unembedding."""
    n_params_to_hook: int
    """Parameters of the blocks up to and including the hook's. Embedding is a look-up, which multiplies nothing."""
    n_buffer_bytes: int
    """Bytes of masks and rotary tables, which `model_dtype` does not change."""
    d_model: int
    d_widest: int
    """Width of the widest layer within a block, usually the MLP's."""
    n_heads: int
    d_vocab: int
    reads_logits: bool
    """True if the hook is in no layer, so that the forward pass runs to the logits."""


@validate_arguments
def model_size(name: str, hook_name: str, model_class_name: str, config_folder: str | None = None) -> ModelSize:
    """The size of the model that `load_model` would load; jitter and adapters count for nothing.

    Args:
        config_folder: a folder with a transformers `config.json` to use instead of the model's own.

    Raises:
        OSError: if the model's config is neither local nor on a reachable Hub.
        ValueError: for an unknown model, or a layer that it does not have.
    """
    name, adapter = split_adapter(name)
    if adapter is not None and model_class_name == "HookedTransformer":
        model_class_name = "TransformerBridge"
    name, _ = split_jitter(name)
    validate_loadable(name, model_class_name)
    if name in TINY_MODELS:
        tiny = new_tiny_model(seed=0)
        return _measured(name, hook_name, tiny, list(tiny.blocks), tiny.cfg.n_heads, n_extra=0)
    if config_folder is None:
        model_class_name = usable_model_class([name], model_class_name)
    if model_class_name == "HookedTransformer" and config_folder is None:
        model = _empty_hooked_transformer(name)
        return _measured(name, hook_name, model, list(model.blocks), model.cfg.n_heads, n_extra=0)
    return _size_from_transformers(name, hook_name, model_class_name, config_folder or official_name(name))


def _size_from_transformers(name: str, hook_name: str, model_class_name: str, source: str) -> ModelSize:
    from transformers import AutoConfig, AutoModelForCausalLM

    config: Any = AutoConfig.from_pretrained(source)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(config)
    text = config.get_text_config()
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    blocks = next((list(modules) for modules in lists if len(modules) == text.num_hidden_layers), None)
    if blocks is None:
        raise ValueError(
            f"The model of {source} has no list of {text.num_hidden_layers} layers, so its blocks cannot be counted."
        )
    unembedding = model.get_output_embeddings()
    n_extra = 0
    if model_class_name == "TransformerBridge" and unembedding.bias is None:
        n_extra = unembedding.weight.shape[0]  # the bridge adds a bias
    if model_class_name == "HookedTransformer" and text.tie_word_embeddings:
        n_extra = unembedding.weight.numel()
    return _measured(name, hook_name, model, blocks, text.num_attention_heads, n_extra)


def _empty_hooked_transformer(name: str) -> Any:
    """A HookedTransformer without weights, on the meta device."""
    from transformer_lens import HookedTransformer
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    config = copy.copy(get_pretrained_model_config(name, device="meta"))
    config.tokenizer_name = None  # the tokenizer would be downloaded
    config.init_weights = False
    with torch.device("meta"):
        return HookedTransformer(config, move_to_device=False)


def _measured(
    name: str, hook_name: str, model: nn.Module, blocks: list[nn.Module], n_heads: int, n_extra: int
) -> ModelSize:
    stop = stop_after(hook_name)
    layer = None if stop is None else stop - 1
    if layer is not None and layer >= len(blocks):
        raise ValueError(
            f"hook_name={hook_name!r} is in layer {layer}, but {name} has {len(blocks)} layers, counted from 0."
        )
    blocks_to_hook = blocks if layer is None else blocks[: layer + 1]
    d_vocab, d_model = next(p.shape for p in model.parameters() if p.ndim == 2)  # the embedding comes first
    return ModelSize(
        name=name,
        n_params=n_extra + sum(p.numel() for p in model.parameters()),
        n_params_to_hook=sum(p.numel() for block in blocks_to_hook for p in block.parameters()),
        n_buffer_bytes=sum(b.numel() * b.element_size() for b in model.buffers()),
        d_model=d_model,
        d_widest=max(size for p in blocks[0].parameters() for size in p.shape),
        n_heads=n_heads,
        d_vocab=d_vocab,
        reads_logits=layer is None,
    )
