"""Loading language models and tokenizers by name, with raw weights, and checking that their tokenizers agree."""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from sae_lens.load_model import load_model as load_host_model
from sae_lens.util import str_to_dtype
from torch import nn
from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS, get_official_model_name

from sae_lens_crosscoder.models.adapter_files import share_weights, split_adapter
from sae_lens_crosscoder.models.adapter_loading import load_with_adapters
from sae_lens_crosscoder.models.tiny import TINY_MODELS, load_tiny_model, tiny_tokenizer

MODEL_CLASSES = ("HookedTransformer", "TransformerBridge", "AutoModelForCausalLM")

# Tokens of the vocabulary, evenly spread, that both tokenizers decode and encode again for comparison.
_N_PROBE_TOKENS = 500

# NAME+jitter=SIZE is a null model: NAME moved in a random direction instead of by training.
_JITTER = "+jitter="


def load_model(
    name: str, device: str, dtype: str, model_class_name: str, model_from_pretrained_kwargs: dict[str, Any]
) -> nn.Module:
    """Load one model with raw weights: a built-in tiny one, a Hub model, or a local folder.

    A name such as `google/gemma-2-2b+jitter=0.02` loads the model with noise on its weights, for null runs, and
    `NAME+adapter=FOLDER_OR_HUB_ID` loads NAME with a LoRA adapter, as a TransformerBridge in place of a
    HookedTransformer. `model_from_pretrained_kwargs` go to the host's own loader.
    """
    if split_adapter(name)[1] is not None:
        return load_models((name,), (device,), dtype, model_class_name, model_from_pretrained_kwargs)[0]
    name, jitter = split_jitter(name)
    if jitter:
        return add_jitter(load_model(name, device, dtype, model_class_name, model_from_pretrained_kwargs), jitter)
    validate_loadable(name, model_class_name)
    if model_from_pretrained_kwargs.get("trust_remote_code"):
        raise ValueError(f"trust_remote_code=True would run code that comes with {name!r}; it is not supported.")
    if name in TINY_MODELS:
        return load_tiny_model(name, device=device, dtype=dtype)
    kwargs: dict[str, Any] = {"dtype": str_to_dtype(dtype), **model_from_pretrained_kwargs}
    if model_class_name == "AutoModelForCausalLM":
        kwargs["trust_remote_code"] = False  # otherwise transformers asks at the terminal
    if model_class_name == "TransformerBridge":
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, device=device, **kwargs)
    return load_host_model(model_class_name, name, device=device, model_from_pretrained_kwargs=kwargs)


def load_models(
    names: Sequence[str],
    devices: Sequence[str],
    dtype: str,
    model_class_name: str,
    model_from_pretrained_kwargs: dict[str, Any],
) -> list[Any]:
    """Load models by name; with adapters, those of one base on one device share a copy of its weights."""
    if not share_weights(names, devices):
        each = zip(names, devices, strict=True)
        return [load_model(name, on, dtype, model_class_name, model_from_pretrained_kwargs) for name, on in each]
    base, adapters = split_adapter(names[0])[0], [split_adapter(name)[1] for name in names]
    validate_loadable(base, adapter_host(model_class_name))
    if base in TINY_MODELS:
        raise ValueError(f"The built-in {base!r} takes no adapters: they go on Hugging Face models.")
    if model_from_pretrained_kwargs.get("trust_remote_code"):
        raise ValueError(f"trust_remote_code=True would run code that comes with {base!r}; it is not supported.")
    host = adapter_host(model_class_name)
    return load_with_adapters(base, adapters, devices[0], dtype, host, model_from_pretrained_kwargs)


def adapter_host(model_class_name: str) -> str:
    """The class that loads a model with an adapter: HookedTransformer has no Hugging Face model to put one on."""
    return "TransformerBridge" if model_class_name == "HookedTransformer" else model_class_name


def load_tokenizer(name: str, model_class_name: str) -> Any:
    """Load the tokenizer of the model that `load_model` would load, without the model."""
    name, adapter = split_adapter(name)
    model_class_name = model_class_name if adapter is None else adapter_host(model_class_name)
    name, _ = split_jitter(name)
    validate_loadable(name, model_class_name)
    if name in TINY_MODELS:
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    if model_class_name == "HookedTransformer":
        name = get_official_model_name(name)  # TransformerLens has its own short names for models on the Hub
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def validate_loadable(name: str, model_class_name: str) -> None:
    """Raise a ValueError for an unknown class, or a name (without jitter) that the class cannot load."""
    if model_class_name not in MODEL_CLASSES:
        raise ValueError(f"model_class_name={model_class_name!r} is not one of {MODEL_CLASSES}.")
    if name.startswith("tiny-") and name not in TINY_MODELS:
        raise ValueError(f"Unknown built-in model {name!r}. Use one of {', '.join(TINY_MODELS)}.")
    if model_class_name == "HookedTransformer" and _host_runs_code_of(name):
        raise ValueError(
            f"HookedTransformer would run code that comes with {name!r} (it sets trust_remote_code=True). Use "
            "model_class_name='TransformerBridge' (same hook names) or 'AutoModelForCausalLM', which run none."
        )
    if model_class_name == "HookedTransformer" and name not in TINY_MODELS and os.path.isdir(name):
        raise ValueError(
            f"HookedTransformer loads models by their Hub name only, and {name!r} is a local folder. Use "
            "model_class_name='TransformerBridge' (same hook names) or 'AutoModelForCausalLM'."
        )


def _host_runs_code_of(name: str) -> bool:
    with suppress(ValueError):  # TransformerLens reports names that it does not know itself
        return get_official_model_name(name).startswith(NEED_REMOTE_CODE_MODELS)
    return False


def split_jitter(name: str) -> tuple[str, float]:
    """Split a model's name into the name without jitter and the size of the jitter, 0 for none.

    >>> split_jitter("tiny-base+jitter=0.02"), split_jitter("tiny-base")
    (('tiny-base', 0.02), ('tiny-base', 0.0))
    """
    name, jitter, size = name.partition(_JITTER)
    return name, _jitter_size(size) if jitter else 0.0


def _jitter_size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0 < size < 1:
        raise ValueError(
            f"The jitter's size {text!r} must be between 0 and 1, as in 'tiny-base+jitter=0.02': it is the noise on "
            "every weight, relative to the weights."
        )
    return size


@torch.no_grad()
def add_jitter(model: nn.Module, size: float) -> nn.Module:
    """Add Gaussian noise of `size` times its root mean square to every weight tensor, in place; returns the model.

    The noise depends on the shapes alone, so the name of a jittered model identifies its weights.
    """
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        noise = torch.randn(weights.shape, generator=generator)
        weights += (size * weights.float().square().mean().sqrt() * noise.to(weights.device)).to(weights.dtype)
    return model


def validate_same_tokenizer(tokenizers: Sequence[Any], replaced: Collection[int] = ()) -> None:
    """Raise a ValueError unless all tokenizers give the same ids; models without a tokenizer are not checked.

    Args:
        replaced: ids that the base model never reads, so that they may mean anything to it.
    """
    known = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    for second in known[1:]:
        first = known[0]
        difference = None if first is second else _tokenizer_difference(first, second, replaced)
        if difference is not None:
            raise ValueError(
                f"The models' tokenizers differ: {difference}. Activations are paired only if both models read the "
                "same ids. Check that the chat model was tuned from this base model, or pass control tokens that only "
                "the chat model has as token_replacements."
            )


def _tokenizer_difference(first: Any, second: Any, replaced: Collection[int]) -> str | None:
    first_tokens, second_tokens = ({i: token for token, i in t.get_vocab().items()} for t in (first, second))
    for i in sorted((first_tokens.keys() | second_tokens.keys()) - set(replaced)):
        if first_tokens.get(i) != second_tokens.get(i):
            return f"id {i} is {first_tokens.get(i)!r} in the first and {second_tokens.get(i)!r} in the second"
    # Equal vocabularies can still merge or normalise text differently.
    ordinary = sorted(first_tokens.keys() - set(first.all_special_ids) - set(replaced))
    text = first.decode(ordinary[:: max(1, len(ordinary) // _N_PROBE_TOKENS)])
    first_ids, second_ids = (t(text, add_special_tokens=False)["input_ids"] for t in (first, second))
    for position, (a, b) in enumerate(zip(first_ids, second_ids, strict=False)):
        if a != b:
            return f"the same text gives {first_tokens.get(a)!r} and {first_tokens.get(b)!r} at position {position}"
    if len(first_ids) != len(second_ids):
        return f"the same text gives {len(first_ids)} and {len(second_ids)} tokens"
    return None
