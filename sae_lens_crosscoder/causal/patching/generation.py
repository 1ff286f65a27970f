"""Text that a patched pair writes, with both models' keys and values kept from token to token."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from sae_lens_crosscoder.causal.patching.intervention import ModelName
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.key_value_cache import copy_key_value_cache
from sae_lens_crosscoder.models.pair import HookedModelPair


@torch.no_grad()
def generate_patched(
    pair: HookedModelPair,
    tokens: Int[Tensor, "prompt pos"],
    writer: ModelName = "chat",
    *,
    max_new_tokens: int = 16,
    end: int | None = None,
) -> Int[Tensor, "prompt new"]:
    """Generate greedily with one model of the pair, under the pair's patches.

    Inside `with patched(pair, ...)` both models read every new token, because latents depend on both. Models other than
    HookedTransformer and TransformerBridge read all tokens again for each new one. Without patches this is the model's
    own greedy generation.

    Args:
        tokens: prompts of one length, without padding.
        writer: the model whose next token is taken; both models read it. With `read_by="chat"` the chat model writes
            from the base model's patched activations.
        end: the token that ends an answer, by default the tokenizer's `eos_token_id`.

    Returns:
        The new tokens; finished answers are filled up with `end`.
    """
    if writer not in ("base", "chat"):
        raise ValueError(f"Unknown writer={writer!r}: expected 'base' or 'chat'.")
    if end is None:
        end = getattr(pair.tokenizer, "eos_token_id", None)
    m = 0 if writer == "base" else -1
    cached_pair = _with_caches(pair)
    reader = pair if cached_pair is None else cached_pair
    n_prompt, ended = tokens.shape[1], torch.zeros(len(tokens), dtype=torch.bool)
    state = pair.patch_state
    try:
        for _ in range(max_new_tokens):
            next_token = reader(tokens[:, state.n_tokens_read :])[:, -1, m].argmax(dim=-1).to(tokens)
            state.n_tokens_read = 0 if cached_pair is None else tokens.shape[1]
            if end is not None:
                next_token[ended.to(tokens.device)] = end
                ended |= (next_token == end).cpu()
            tokens = torch.cat([tokens, next_token[:, None]], dim=1)
            if bool(ended.all()):
                break
    finally:
        state.n_tokens_read = 0
    return tokens[:, n_prompt:]


def _with_caches(pair: HookedModelPair) -> HookedModelPair | None:
    """The pair under the same hooks, with each forward pass continuing from the last; None if a host has no cache."""
    members: list[_CachedModel] = []
    for model in pair.members:
        if isinstance(model, HookedTransformer):
            members.append(_CachedHookedTransformer(model))
        elif isinstance(model, TransformerBridge):
            members.append(_CachedBridge(model))
        else:
            return None
    cached_pair = HookedModelPair(*members)
    cached_pair.hook_dict = pair.hook_dict
    return cached_pair


class _CachedModel(nn.Module, ABC):
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


class _CachedHookedTransformer(_CachedModel):
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


class _CachedBridge(_CachedModel):
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
