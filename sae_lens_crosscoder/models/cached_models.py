"""Models that continue from their key/value cache: each forward pass reads only the tokens after the last one."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from sae_lens.load_model import HookedProxyLM
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from sae_lens_crosscoder.models.adapters import as_running
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.key_value_cache import copy_key_value_cache


class CachedModel(nn.Module, ABC):
    """A model as the pair uses it: `forward` extends the key/value cache, `run_with_cache` does not."""

    def __init__(self, host: Any) -> None:
        super().__init__()
        self.host = host
        self.past: Any = None

    @property
    def hook_dict(self) -> Any:
        return self.host.hook_dict

    def hooks(self, *args: Any, **kwargs: Any) -> Any:
        return self.host.hooks(*args, **kwargs)

    def run_with_cache(self, tokens: Tensor, **kwargs: Any) -> Any:
        return self.host.run_with_cache(tokens, **self._continuing(tokens), **kwargs)

    @abstractmethod
    def _continuing(self, tokens: Tensor) -> dict[str, Any]:
        """Arguments that make the host continue from a copy of the cache."""


class _CachedHookedTransformer(CachedModel):
    @override
    def _continuing(self, tokens: Tensor) -> dict[str, Any]:
        if self.past is None:
            self.past = TransformerLensKeyValueCache.init_cache(self.host.cfg, device_of(self.host), len(tokens))
        # Without a mask it would ask the tokenizer for one, and there may be no tokenizer.
        return {"past_kv_cache": copy_key_value_cache(self.past), "attention_mask": torch.ones_like(tokens)}

    @override
    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        options = self._continuing(tokens)
        logits = self.host(tokens, **options, **kwargs)
        self.past = options["past_kv_cache"]
        return logits


class _CachedBridge(CachedModel):
    @override
    def _continuing(self, tokens: Tensor) -> dict[str, Any]:
        if self.past is None:
            return {"use_cache": False}
        return {"use_cache": True, "past_key_values": copy_key_value_cache(self.past)}

    @override
    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        options = {**self._continuing(tokens), "use_cache": True, **kwargs, "return_type": "logits_and_cache"}
        logits, self.past = self.host(tokens, **options)
        return logits


class _CachedProxy(CachedModel):
    """HookedProxyLM's own passes take no cache, so its Hugging Face model is called."""

    @override
    def _continuing(self, tokens: Tensor) -> dict[str, Any]:
        raise NotImplementedError("A HookedProxyLM reads no activations from a cache.")

    @override
    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        with as_running(self.host):
            output = self.host.model(tokens, use_cache=True, past_key_values=self.past)
        self.past = output.past_key_values
        return output.logits


def with_activations(model: Any) -> CachedModel | None:
    """The model with a cache that `run_with_cache` reads too; None if its host has none."""
    if isinstance(model, HookedTransformer):
        return _CachedHookedTransformer(model)
    return _CachedBridge(model) if isinstance(model, TransformerBridge) else None


def with_logits(model: Any) -> CachedModel:
    """The model with a cache, for its logits alone.

    Raises:
        ValueError: for a model that has no cache.
    """
    cached = _CachedProxy(model) if isinstance(model, HookedProxyLM) else with_activations(model)
    if cached is None:
        raise ValueError(
            f"A {type(model).__name__} cannot generate. Load the models with model_class_name='HookedTransformer', "
            "'TransformerBridge' or 'AutoModelForCausalLM'."
        )
    return cached
