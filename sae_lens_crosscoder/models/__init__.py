"""Language models: the hooked pair, loading by name, token replacements, and the built-in tiny pair."""

from sae_lens_crosscoder.models.loading import load_model, load_tokenizer
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.sizes import ModelSize, model_size
from sae_lens_crosscoder.models.tiny import (
    TINY_DATASET,
    TINY_HOOK,
    TINY_MODELS,
    load_tiny_model,
    tiny_dataset,
    tiny_tokenizer,
)
from sae_lens_crosscoder.models.token_replacements import TOKEN_REPLACEMENTS

__all__ = [
    "TINY_DATASET",
    "TINY_HOOK",
    "TINY_MODELS",
    "TOKEN_REPLACEMENTS",
    "HookedModelPair",
    "ModelSize",
    "load_model",
    "load_tiny_model",
    "load_tokenizer",
    "model_size",
    "tiny_dataset",
    "tiny_tokenizer",
]
