"""Loading one copy of a base model with LoRA adapters, as one hooked model per adapter."""

from collections.abc import Sequence
from typing import Any

import torch
from sae_lens.load_model import HookedProxyLM
from sae_lens.util import extract_layer_from_tlens_hook_name, str_to_dtype
from torch import Tensor, nn

from sae_lens_crosscoder.models.adapter_files import (
    LoraAdapter,
    load_lora_adapter,
    loaded_lora_adapter,
    validate_fits,
)
from sae_lens_crosscoder.models.adapters import SharedModel
from sae_lens_crosscoder.models.equal_blocks import blocks_of

_PROBE_TOKENS = 8


def load_with_adapters(
    base_name: str,
    adapters: Sequence[str | None],
    device: str,
    dtype: str,
    model_class_name: str,
    model_from_pretrained_kwargs: dict[str, Any],
) -> list[Any]:
    """Load a base model once, and return a hooked model for each adapter, or for none where it is None.

    Args:
        model_class_name: `AutoModelForCausalLM` gives HookedProxyLMs; the others give TransformerBridges, because a
            HookedTransformer has no Hugging Face model to put an adapter on.

    Raises:
        ImportError: without peft.
        ValueError: for an adapter that does not fit the base model or cannot be switched off.
    """
    from transformers import AutoModelForCausalLM

    sources = [source for source in dict.fromkeys(adapters) if source is not None]
    files = {f"adapter_{i}": load_lora_adapter(source) for i, source in enumerate(sources)}
    is_bridge = model_class_name != "AutoModelForCausalLM"
    options: dict[str, Any] = {"dtype": str_to_dtype(dtype), "trust_remote_code": False}
    if is_bridge:
        options["attn_implementation"] = "eager"  # as TransformerBridge loads it
    model: Any = AutoModelForCausalLM.from_pretrained(base_name, **options, **model_from_pretrained_kwargs)
    model = model.to(device).eval()
    for adapter in files.values():
        validate_fits(adapter, base_name, model)
    hook_names = [name for name, _ in model.named_modules() if name]
    first_adapted = min(_first_block(adapter) for adapter in files.values())
    model, parameters = _with_adapters(model, files)
    before = {name: _probe_logits(model, name) for name in (None, *files)}
    host = _bridge(base_name, model, device) if is_bridge else _proxy(base_name, model, hook_names)
    shared = SharedModel(host, model, blocks_of(host), parameters, first_adapted)
    names = {adapter.source: name for name, adapter in files.items()}
    views = {source: shared.view(names.get(source) if source else None) for source in (None, *sources)}
    for name, adapter in files.items():
        _validate_adapted(adapter, before[None], before[name], views[None], views[adapter.source])
    for source in sources:
        vars(views[source])["adapter_tokenizer"] = tokenizer_of_adapter(source)
    return [views[source] for source in adapters]


def views_of_peft_model(peft_model: Any, tokenizer: Any, as_proxy: bool) -> tuple[Any, Any]:
    """A loaded `PeftModel` as two hooked models on one copy of its weights: with its adapter off, and on.

    Raises:
        ValueError: for an adapter that cannot be switched off, or that the host does not run.
    """
    adapter = loaded_lora_adapter(peft_model)
    model = peft_model.get_base_model().eval()
    names = [name for name, _ in model.named_modules() if name]
    inside = tuple(f"{name}." for name in adapter.modules)
    parameters = {adapter.source: [p for name, p in model.named_parameters() if f".{adapter.source}." in name]}
    before = {name: _probe_logits(model, name) for name in (None, adapter.source)}
    if as_proxy:
        host: Any = HookedProxyLM(model, tokenizer, hook_names=[name for name in names if not name.startswith(inside)])
    else:
        host = _bridge(model.name_or_path or type(model).__name__, model, str(model.device), tokenizer)
    shared = SharedModel(host, model, blocks_of(host), parameters, _first_block(adapter))
    views = shared.view(None), shared.view(adapter.source)
    _validate_adapted(adapter, before[None], before[adapter.source], *views)
    return views


def tokenizer_of_adapter(source: str) -> Any:
    """The tokenizer that comes with an adapter; None if none does."""
    from transformers import AutoTokenizer
    from transformers.utils.hub import cached_file

    options: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    options["_raise_exceptions_for_connection_errors"] = False
    if cached_file(source, "tokenizer_config.json", **options) is None:
        return None
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def _with_adapters(model: Any, files: dict[str, LoraAdapter]) -> tuple[Any, dict[str, list[nn.Parameter]]]:
    """The model with peft's layers in place, and each adapter's parameters."""
    from peft import PeftModel

    base_parameters = {id(p): p.requires_grad for p in model.parameters()}
    wrapper: Any = None
    for name, adapter in files.items():
        options: dict[str, Any] = {"adapter_name": name, "autocast_adapter_dtype": False}
        if wrapper is None:
            wrapper = PeftModel.from_pretrained(model, adapter.source, **options)
        else:
            wrapper.load_adapter(adapter.source, **options)
    parameters: dict[str, list[nn.Parameter]] = {name: [] for name in files}
    for path, parameter in model.named_parameters():
        if id(parameter) in base_parameters:
            parameter.requires_grad_(base_parameters[id(parameter)])  # peft freezes them
        else:
            parameters[next(name for name in files if f".{name}." in path)].append(parameter)
    return model.eval(), parameters


def _first_block(adapter: LoraAdapter) -> int:
    layers = [extract_layer_from_tlens_hook_name(name) for name in adapter.modules]
    return min(0 if layer is None else layer for layer in layers)


def _bridge(base_name: str, model: Any, device: str, tokenizer: Any = None) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_transformers(
        base_name, hf_model=model, tokenizer=tokenizer, device=device, dtype=model.dtype
    )


def _proxy(base_name: str, model: Any, hook_names: list[str]) -> Any:
    from transformers import AutoTokenizer

    return HookedProxyLM(model, AutoTokenizer.from_pretrained(base_name), hook_names=hook_names)


@torch.no_grad()
def _probe_logits(model: Any, adapter: str | None) -> Tensor:
    """Logits of Hugging Face's own model with one adapter on, or none."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in model.modules():
        if isinstance(layer, BaseTunerLayer):
            if adapter is not None:
                layer.set_adapter([adapter])
            layer.enable_adapters(adapter is not None)
    return model(_probe_tokens(model)).logits.float()


def _probe_tokens(model: Any) -> Tensor:
    return torch.arange(1, 1 + _PROBE_TOKENS, device=next(model.parameters()).device)[None]


@torch.no_grad()
def _validate_adapted(adapter: LoraAdapter, base: Tensor, adapted: Tensor, base_view: Any, view: Any) -> None:
    """Raise a ValueError for a host that computes with the base model's weights in place of the adapter's layers."""
    tokens = _probe_tokens(view)
    effect = (adapted - base).abs().max()
    rounding = (base_view(tokens).float() - base).abs().max()
    error = (view(tokens).float() - adapted).abs().max()
    if error > effect / 2 and error > 4 * rounding + 1e-5 * adapted.abs().max():
        raise ValueError(
            f"TransformerLens does not run adapter {adapter.source!r}: it computes with the base model's weights of "
            "this architecture directly. Use model_class_name='AutoModelForCausalLM', or merge the adapter into a copy "
            "of its base."
        )
