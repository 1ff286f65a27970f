"""Copies of key/value caches, so that a forward pass can continue from one cache more than once."""

import copy
from typing import Any

from jaxtyping import Int
from torch import Tensor
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.cache.key_value_cache_entry import TransformerLensKeyValueCacheEntry


def copy_key_value_cache(cache: Any, prompts: Int[Tensor, " prompt"] | None = None) -> Any:
    """Copy a cache so that it can grow without changing the original.

    Both kinds of cache grow by new tensors in new entries, so copying the entries is enough.

    Args:
        cache: TransformerLens's key/value cache, or a Hugging Face cache, as TransformerBridge returns.
        prompts: indices of the prompts to copy, repeats allowed; None for all.
    """
    if isinstance(cache, TransformerLensKeyValueCache):
        rows: Any = slice(None) if prompts is None else prompts
        entries = [TransformerLensKeyValueCacheEntry(e.past_keys[rows], e.past_values[rows]) for e in cache.entries]
        return TransformerLensKeyValueCache(entries, cache.previous_attention_mask[rows])
    copied = copy.copy(cache)
    copied.layers = [copy.copy(layer) for layer in cache.layers]
    if prompts is not None:
        copied.batch_select_indices(prompts)
    return copied
