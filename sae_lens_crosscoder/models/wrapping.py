"""Wrapping Hugging Face models so that they have hooks, and refusing objects that are no language model."""

import os
import sys
from collections.abc import Sequence
from typing import Any

from sae_lens.load_model import HookedProxyLM
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from sae_lens_crosscoder.models.adapter_loading import views_of_peft_model


def validate_names(*models: Any) -> tuple[str, ...]:
    """Return names and folders as text; raise a ValueError for a model that is loaded already."""
    for model in models:
        if not isinstance(model, str | os.PathLike):
            raise ValueError(
                f"from_pretrained takes names and folders, got a {type(model).__name__}. Pass loaded models to "
                "HookedModelPair(base, chat)."
            )
    return tuple(os.fspath(model) for model in models)


def hooked_models(models: Sequence[Any], tokenizer: Any = None) -> tuple[nn.Module, ...]:
    """Models with hooks: Hugging Face models are wrapped in place and put in evaluation mode, others stay as they are.

    All get TransformerBridge if it supports them, for TransformerLens's hook names; otherwise SAELens's HookedProxyLM.
    A `PeftModel` shares its weights with its base model, which may be given as None.

    Args:
        tokenizer: the Hugging Face models' tokenizer; None to load it from where the model was loaded from.

    Raises:
        ValueError: for an object that cannot be used, or a Hugging Face model without a tokenizer.
    """
    adapted = [model for model in models if _is_peft(model)]
    models = [adapted[-1].get_base_model() if model is None and adapted else model for model in models]
    for model in models:
        if not _is_peft(model):
            validate_usable(model)
    inner = {id(model.get_base_model()): model for model in adapted}
    if len(inner) < len({id(model) for model in adapted}):
        raise ValueError(
            "Two PeftModels wrap the same base model, which has both adapters now. Load them by name: "
            "HookedModelPair.from_pretrained('my-base+adapter=first', 'my-base+adapter=second')."
        )
    unwrapped = [model for model in models if isinstance(model, PreTrainedModel) and id(model) not in inner]
    plain = [*unwrapped, *(model.get_base_model() for model in adapted)]
    as_proxy = any(isinstance(model, HookedProxyLM) for model in models) or not all(map(_has_bridge, plain))
    wrapped: dict[int, Any] = {}  # by identity: a model that is passed twice is wrapped once
    for model in unwrapped:
        if id(model) not in wrapped:
            its_tokenizer = tokenizer or _tokenizer_of(model)
            wrapped[id(model)] = (
                HookedProxyLM(model, its_tokenizer) if as_proxy else _bridge(model, its_tokenizer)
            ).eval()
    for base_id, model in inner.items():
        views = views_of_peft_model(model, tokenizer or _tokenizer_of(model.get_base_model()), as_proxy)
        wrapped[base_id], wrapped[id(model)] = views
    return tuple(wrapped.get(id(model), model) for model in models)


def _is_peft(model: Any) -> bool:
    """True for peft's models; without peft imported there are none."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def validate_usable(model: Any) -> None:
    """Raise a ValueError, with the way out, for an object that cannot be a member of a pair."""
    kind = type(model).__name__
    if isinstance(model, str | os.PathLike):
        raise ValueError(
            f"Got the name {os.fspath(model)!r}, expected a loaded model. Load models by name with "
            "HookedModelPair.from_pretrained(base, chat)."
        )
    if isinstance(model, nn.Module) and hasattr(model, "members"):
        raise ValueError(f"A {kind} cannot be a member of a pair. Pass its models: pair.base and pair.chat.")
    if isinstance(model, PreTrainedModel):
        if model.config.is_encoder_decoder:
            raise ValueError(f"A {kind} has an encoder and a decoder. Pass a decoder-only language model.")
        if model.get_output_embeddings() is None:
            raise ValueError(f"A {kind} gives no logits. Load the model with AutoModelForCausalLM.")
    elif not (isinstance(model, nn.Module) and hasattr(model, "run_with_cache")):
        raise ValueError(
            f"A {kind} cannot be a member of a pair. Pass a HookedTransformer, TransformerBridge, HookedProxyLM, "
            "Hugging Face or PEFT model. Wrap other models: sae_lens.load_model.HookedProxyLM(model, tokenizer)."
        )


def _has_bridge(model: PreTrainedModel) -> bool:
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return type(model).__name__ in SUPPORTED_ARCHITECTURES


def _bridge(model: PreTrainedModel, tokenizer: Any) -> nn.Module:
    from transformer_lens.model_bridge import TransformerBridge

    name = model.name_or_path or type(model).__name__
    return TransformerBridge.boot_transformers(
        name, hf_model=model, tokenizer=tokenizer, device=str(model.device), dtype=model.dtype
    )


def _tokenizer_of(model: PreTrainedModel) -> Any:
    try:
        return AutoTokenizer.from_pretrained(model.name_or_path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"No tokenizer found for the {type(model).__name__} at {model.name_or_path!r}. Pass one: "
            "HookedModelPair(base, chat, tokenizer=AutoTokenizer.from_pretrained(...))."
        ) from error
