"""CacheModels: the models whose activations a cache holds, loaded already or one at a time."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from sae_lens_crosscoder.models.hook_access import activation_at, validate_hook_name
from sae_lens_crosscoder.models.loading import load_model, usable_model_class, validate_same_tokenizer
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import replace_embedded_tokens, replacement_ids
from sae_lens_crosscoder.storage.checksums import fingerprint

Loader = Callable[[], nn.Module]


@dataclass(frozen=True)
class CacheModels:
    """Functions that return the models, base first, and the description of the models in the manifest."""

    loaders: tuple[Loader, ...]
    model_names: tuple[str, ...] | None
    d_models: tuple[int, ...]
    weights_sha256: tuple[str, ...]
    """Fingerprint of each model's weights."""
    token_replacements: dict[str, str]
    tokenizer: Any
    """The chat model's, or None."""
    are_loaded: bool
    """True if all models are in memory already."""

    @classmethod
    def inspect(
        cls, models: HookedModelPair | Sequence[str], loading: Mapping[str, Any] | None, hook_name: str
    ) -> "CacheModels":
        """Describe a loaded pair, or load the named models one after another to describe them.

        Raises:
            ValueError: for a hook that a model lacks, or tokenizers that differ.
        """
        if isinstance(models, HookedModelPair):
            if loading:
                raise ValueError(
                    f"loading={dict(loading)} applies to models given by name, and this pair is already loaded."
                )
            loaders: list[Loader] = [lambda member=member: member for member in models.members]
            names, replacements = models.model_names, models.token_replacements
        else:
            loaders, replacements = _named_loaders(models, loading or {})
            names = tuple(models)
        widths, weights, ids, tokenizer = _inspected(loaders, hook_name, replacements)
        are_loaded = isinstance(models, HookedModelPair)
        if not are_loaded:  # a pair's models replace their tokens already
            loaders[:-1] = [partial(_load_with_replacements, load, ids) for load in loaders[:-1]]
        return cls(tuple(loaders), names, widths, weights, replacements, tokenizer, are_loaded)


def _named_loaders(models: Sequence[str], loading: Mapping[str, Any]) -> tuple[list[Loader], dict[str, str]]:
    if isinstance(models, str) or len(models) < 2:
        raise ValueError(f"models={models!r} must be a HookedModelPair, or the names of the base and the chat model.")
    defaults = {"device": "cpu", "dtype": "float32", "model_class_name": "HookedTransformer"}
    options: dict[str, Any] = {**defaults, **loading}
    device, dtype, model_class = (options.pop(key) for key in defaults)
    model_class = usable_model_class(models, model_class)
    replacements = dict(options.pop("token_replacements", None) or {})
    return [partial(load_model, name, device, dtype, model_class, options) for name in models], replacements


def _load_with_replacements(load: Loader, ids: Mapping[int, int]) -> nn.Module:
    model = load()
    replace_embedded_tokens(model, ids)
    return model


@torch.no_grad()
def _inspected(
    loaders: Sequence[Loader], hook_name: str, replacements: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[str, ...], dict[int, int], Any]:
    """Widths at the hook, fingerprints of weights, ids that the base model replaces, and the chat model's tokenizer."""
    tokenizers: list[Any] = []
    widths: list[int] = []
    weights: list[str] = []
    for load in loaders:
        model: Any = load()
        validate_hook_name(hook_name, model.hook_dict)
        tokenizers.append(getattr(model, "tokenizer", None))
        widths.append(activation_at(model, torch.zeros(1, 1, dtype=torch.long), hook_name).shape[-1])
        weights.append(fingerprint(model.parameters()))
        del model  # before the next one is loaded
    ids = replacement_ids(replacements, tokenizers[0], tokenizers[-1])
    validate_same_tokenizer(tokenizers, ids)
    return tuple(widths), tuple(weights), ids, tokenizers[-1]
