"""Activation caches: paired activations on disk, written once and read as often as needed."""

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.cache.writer import cache_activations

__all__ = ["ActivationCache", "cache_activations"]
