"""Loads language models by name, with raw weights, and checks that they read the same tokens."""

import os
from collections.abc import Collection, Sequence
from contextlib import suppress
from typing import Any

import torch
from sae_lens.load_model import load_model as load_host_model
from sae_lens.util import str_to_dtype
from torch import nn
from transformer_lens.loading_from_pretrained import NEED_REMOTE_CODE_MODELS, get_official_model_name

from sae_lens_crosscoder.models.tiny import TINY_MODELS, load_tiny_model, tiny_tokenizer

MODEL_CLASSES = ("HookedTransformer", "TransformerBridge", "AutoModelForCausalLM")

# How many tokens of the vocabulary, evenly spread, are written out and read back by both tokenizers.
_N_PROBE_TOKENS = 500


# NAME+jitter=SIZE is a null model: NAME, moved in a random direction instead of by training.
_JITTER = "+jitter="


def load_model(
    name: str, device: str, dtype: str, model_class_name: str, model_from_pretrained_kwargs: dict[str, Any]
) -> nn.Module:
    """One model with raw weights: a built-in tiny one, a Hub model, or a local folder.

    A name such as `google/gemma-2-2b+jitter=0.02` gives the model with noise on its weights, for null runs.
    `model_from_pretrained_kwargs` go to the host's own loader.
    """
    name, jitter = split_jitter(name)
    if jitter:
        return jittered(load_model(name, device, dtype, model_class_name, model_from_pretrained_kwargs), jitter)
    validate_loadable(name, model_class_name)
    if model_from_pretrained_kwargs.get("trust_remote_code"):
        raise ValueError(f"trust_remote_code=True would run code that comes with {name!r}; it is not supported.")
    if name in TINY_MODELS:
        return load_tiny_model(name, device=device, dtype=dtype)
    kwargs: dict[str, Any] = {"dtype": str_to_dtype(dtype), **model_from_pretrained_kwargs}
    if model_class_name == "AutoModelForCausalLM":
        kwargs["trust_remote_code"] = False  # left open, transformers asks whoever sits at the terminal
    if model_class_name == "TransformerBridge":
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, device=device, **kwargs)
    return load_host_model(model_class_name, name, device=device, model_from_pretrained_kwargs=kwargs)


def load_tokenizer(name: str, model_class_name: str) -> Any:
    """The tokenizer of the model that `load_model` would load, without the model."""
    name, _ = split_jitter(name)
    validate_loadable(name, model_class_name)
    if name in TINY_MODELS:
        return tiny_tokenizer()
    from transformers import AutoTokenizer

    if model_class_name == "HookedTransformer":
        name = get_official_model_name(name)  # which has short names of its own for models on the Hub
    return AutoTokenizer.from_pretrained(name, trust_remote_code=False)


def split_jitter(name: str) -> tuple[str, float]:
    """A model's name without the noise that it asks for, and that noise's size, 0 for none.

    >>> split_jitter("tiny-base+jitter=0.02"), split_jitter("tiny-base")
    (('tiny-base', 0.02), ('tiny-base', 0.0))
    """
    name, jitter, size = name.partition(_JITTER)
    return name, _jitter_size(size) if jitter else 0.0


def validate_loadable(name: str, model_class_name: str) -> None:
    """Raise a ValueError for a class, or a name (without jitter) for that class, that `load_model` does not know."""
    if model_class_name not in MODEL_CLASSES:
        raise ValueError(f"model_class_name={model_class_name!r} is not one of {MODEL_CLASSES}.")
    if name.startswith("tiny-") and name not in TINY_MODELS:
        raise ValueError(f"There is no built-in model {name!r}: those are {', '.join(TINY_MODELS)}.")
    if model_class_name == "HookedTransformer" and _host_runs_code_of(name):
        raise ValueError(
            f"HookedTransformer runs code that comes with {name!r} (it sets trust_remote_code=True for it). Say "
            "model_class_name='TransformerBridge' (same hook names) or 'AutoModelForCausalLM', which run none."
        )
    if model_class_name == "HookedTransformer" and name not in TINY_MODELS and os.path.isdir(name):
        raise ValueError(
            f"HookedTransformer loads models by their Hub name only, and {name!r} is a local folder. Say "
            "model_class_name='TransformerBridge' (same hook names) or 'AutoModelForCausalLM'."
        )


def _host_runs_code_of(name: str) -> bool:
    with suppress(ValueError):  # a name that TransformerLens does not know, as it will say itself
        return get_official_model_name(name).startswith(NEED_REMOTE_CODE_MODELS)
    return False


@torch.no_grad()
def jittered(model: nn.Module, size: float) -> nn.Module:
    """The model itself, after Gaussian noise of `size` times its root mean square was added to every weight tensor.

    The noise is always the same for the same shapes, so the name of a jittered model says which model it is.
    """
    generator = torch.Generator().manual_seed(0)
    for weights in model.parameters():
        noise = torch.randn(weights.shape, generator=generator)
        weights += (size * weights.float().square().mean().sqrt() * noise.to(weights.device)).to(weights.dtype)
    return model


def _jitter_size(text: str) -> float:
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not 0 < size < 1:
        raise ValueError(
            f"A jittered model is named like 'tiny-base+jitter=0.02', with a size between 0 and 1, not {text!r}: it is "
            "the noise on every weight, relative to the weights."
        )
    return size


def validate_same_tokenizer(tokenizers: Sequence[Any], replaced: Collection[int] = ()) -> None:
    """Raise a ValueError unless all tokenizers give the same ids; models without a tokenizer are taken on trust.

    Args:
        replaced: ids that the base model never reads, and that may therefore mean anything to it.
    """
    known = [tokenizer for tokenizer in tokenizers if tokenizer is not None]
    for other in known[1:]:
        first = known[0]
        if first is other:
            continue
        difference = _first_difference(first, other, replaced)
        if difference is not None:
            raise ValueError(
                f"The models' tokenizers differ: {difference}. Both models must see the same ids, or their "
                "activations are not paired: check that the chat model was tuned from this base model. Control tokens "
                "that only the chat model has can be given in token_replacements."
            )


def _first_difference(first: Any, other: Any, replaced: Collection[int]) -> str | None:
    tokens, other_tokens = ({i: token for token, i in t.get_vocab().items()} for t in (first, other))
    for i in sorted((tokens.keys() | other_tokens.keys()) - set(replaced)):
        if tokens.get(i) != other_tokens.get(i):
            return f"id {i} is {tokens.get(i)!r} in the first and {other_tokens.get(i)!r} in the other"
    # Equal vocabularies can still merge or normalise text differently.
    ordinary = sorted(tokens.keys() - set(first.all_special_ids) - set(replaced))
    text = first.decode(ordinary[:: max(1, len(ordinary) // _N_PROBE_TOKENS)])
    ids, other_ids = (t(text, add_special_tokens=False)["input_ids"] for t in (first, other))
    for position, (a, b) in enumerate(zip(ids, other_ids, strict=False)):
        if a != b:
            return f"the same text gives {tokens.get(a)!r} and {tokens.get(b)!r} at position {position}"
    return None if len(ids) == len(other_ids) else f"the same text gives {len(ids)} and {len(other_ids)} tokens"
