"""Loading language models and tokenizers by name, with raw weights, and checking that their tokenizers agree."""

import logging
import os
from collections.abc import Collection, Sequence
from typing import Any

import torch
from sae_lens.load_model import load_model as load_host_model
from sae_lens.util import str_to_dtype
from torch import nn
from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS, get_official_model_name

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.adapter_files import share_weights, split_adapter
from sae_lens_crosscoder.models.adapter_loading import load_with_adapters, tokenizer_of_adapter
from sae_lens_crosscoder.models.tiny import TINY_MODELS, load_tiny_model, tiny_tokenizer

MODEL_CLASSES = ("HookedTransformer", "TransformerBridge", "AutoModelForCausalLM")

# Tokens of the vocabulary, evenly spread, that both tokenizers decode and encode again for comparison.
_N_PROBE_TOKENS = 500

# NAME+jitter=SIZE is a null model: NAME moved in a random direction instead of by training.
_JITTER = "+jitter="

_HOST_KWARGS = (
    "fold_ln",
    "center_writing_weights",
    "center_unembed",
    "fold_value_biases",
    "refactor_factored_attn_matrices",
)
"""Arguments that HookedTransformer alone has; raw weights need all of them to be False."""

_log = logging.getLogger(__name__)


@validate_arguments
def load_model(
    name: str, device: str, dtype: str, model_class_name: str, model_from_pretrained_kwargs: dict[str, Any]
) -> nn.Module:
    """Load one model with raw weights: a built-in tiny one, a Hub model, or a local folder.

    A name such as `google/gemma-2-2b+jitter=0.02` loads the model with noise on its weights, for null runs, and
    `NAME+adapter=FOLDER_OR_HUB_ID` loads NAME with a LoRA adapter. `model_from_pretrained_kwargs` go to the host's own
    loader. TransformerBridge loads what HookedTransformer cannot: see `usable_model_class`.
    """
    model_class_name = usable_model_class([name], model_class_name)
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

        kwargs = _without_host_kwargs(kwargs)
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
    model_class_name = usable_model_class(names, model_class_name)
    if not share_weights(names, devices):
        each = zip(names, devices, strict=True)
        return [load_model(name, on, dtype, model_class_name, model_from_pretrained_kwargs) for name, on in each]
    base, adapters = split_adapter(names[0])[0], [split_adapter(name)[1] for name in names]
    validate_loadable(base, model_class_name)
    if base in TINY_MODELS:
        raise ValueError(f"The built-in {base!r} takes no adapters: they go on Hugging Face models.")
    if model_from_pretrained_kwargs.get("trust_remote_code"):
        raise ValueError(f"trust_remote_code=True would run code that comes with {base!r}; it is not supported.")
    kwargs = _without_host_kwargs(model_from_pretrained_kwargs)
    return load_with_adapters(base, adapters, devices[0], dtype, model_class_name, kwargs)


@validate_arguments
def load_tokenizer(name: str, model_class_name: str) -> Any:
    """Load the tokenizer of the model that `load_model` would load, without the model."""
    model_class_name = usable_model_class([name], model_class_name)
    name, adapter = split_adapter(name)
    name, _ = split_jitter(name)
    validate_loadable(name, model_class_name)
    if name in TINY_MODELS:
        return tiny_tokenizer()
    tokenizer = None if adapter is None else tokenizer_of_adapter(adapter)
    if tokenizer is not None:
        return tokenizer
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(official_name(name), trust_remote_code=False)


def usable_model_class(names: Sequence[str], model_class_name: str) -> str:
    """Return the class that can load all named models, `TransformerBridge` where `HookedTransformer` cannot.

    HookedTransformer loads no local folders, no adapters and no models that TransformerLens does not list, and would
    run code that comes with some models. TransformerBridge loads these under the same hook names; a log line names the
    first such model. Both models of a pair get the same class.
    """
    if model_class_name != "HookedTransformer":
        return model_class_name
    for name in names:
        model, adapter = split_adapter(name)
        model, _ = split_jitter(model)
        validate_loadable(model, model_class_name)
        reason = _unusable_by_hooked_transformer(model)
        if adapter is not None:
            reason = f"HookedTransformer cannot load the adapter {adapter!r}."
        if reason is not None:
            _log.warning("Loading with TransformerBridge, under the same hook names: %s", reason)
            return "TransformerBridge"
    return model_class_name


def _unusable_by_hooked_transformer(name: str) -> str | None:
    """Why HookedTransformer cannot load the model; None if it can, or if no class can tell from the name."""
    if name in TINY_MODELS:
        return None
    if os.path.isdir(name):
        return f"HookedTransformer cannot load the local folder {name!r}."
    if official_name(name).startswith(NEED_REMOTE_CODE_MODELS):
        return f"HookedTransformer would run code that comes with {name!r}."
    if "/" in name and not _is_listed(name):
        return f"HookedTransformer does not know {name!r}."
    return None


def official_name(name: str) -> str:
    """Return the Hub name for one of TransformerLens's short names; folders and unknown names stay as they are."""
    return get_official_model_name(name) if not os.path.isdir(name) and _is_listed(name) else name


def _is_listed(name: str) -> bool:
    try:
        get_official_model_name(name)
    except ValueError:  # TransformerLens's answer for a name that it does not know
        return False
    return True


def _without_host_kwargs(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments for TransformerBridge; SAELens's config adds `center_writing_weights=False` for HookedTransformer."""
    processing = [key for key in _HOST_KWARGS if kwargs.get(key)]
    if processing:
        raise ValueError(
            f"TransformerBridge loads raw weights and has no {processing[0]}=True. Leave {' and '.join(processing)} "
            "out of model_from_pretrained_kwargs: a crosscoder needs raw weights."
        )
    return {key: value for key, value in kwargs.items() if key not in _HOST_KWARGS}


def validate_loadable(name: str, model_class_name: str) -> None:
    """Raise a ValueError for an unknown class, or a name (without jitter) that no class can load."""
    if model_class_name not in MODEL_CLASSES:
        raise ValueError(f"model_class_name={model_class_name!r} is not one of {MODEL_CLASSES}.")
    if name.startswith("tiny-") and name not in TINY_MODELS:
        raise ValueError(f"Unknown built-in model {name!r}. Use one of {', '.join(TINY_MODELS)}.")
    if name.startswith(("/", ".", "~")) and not os.path.isdir(name):
        raise ValueError(f"There is no model folder at {name!r}. Check the path.")


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
def add_jitter(model: nn.Module, size: float, seed: int = 0) -> nn.Module:
    """Add Gaussian noise of `size` times its root mean square to every weight tensor, in place; returns the model.

    The noise depends on the shapes and the seed alone, so the name of a jittered model identifies its weights.
    """
    generator = torch.Generator().manual_seed(seed)
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
        difference = None if first is second else tokenizer_difference(first, second, replaced)
        if difference is not None:
            raise ValueError(
                f"The models' tokenizers differ: {difference}. Activations are paired only if both models read the "
                "same ids. Check that the chat model was tuned from this base model, pass control tokens that only the "
                "chat model has as token_replacements, or pair other tokens by the text they stand for: align_tokens."
            )


def tokenizer_difference(first: Any, second: Any, replaced: Collection[int]) -> str | None:
    """The first difference between two tokenizers' ids, in words; None if they give the same ids."""
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
