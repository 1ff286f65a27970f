"""What a model of a patched pair writes, with both models' keys and values kept from token to token."""

from abc import ABC, abstractmethod
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformer_lens import HookedTransformer
from transformer_lens.cache.key_value_cache import TransformerLensKeyValueCache
from transformer_lens.model_bridge import TransformerBridge
from typing_extensions import override

from sae_lens_crosscoder.causal.patching.interventions import ModelName
from sae_lens_crosscoder.causal.patching.patched import N_BEFORE
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
    """What one model of the pair writes after prompts, token by token the most likely one, under the pair's patches.

    Inside `with patched(pair, ...)` both models read every new token, because latents are read from both. Models other
    than HookedTransformer and TransformerBridge read all tokens anew each time. Outside, it is what the model writes by
    itself.

    Args:
        tokens: prompts of one length, without padding.
        writer: whose next token is taken. Both models read it; with `read_by="chat"` the chat model writes from the
            base model's patched activations.
        end: the token that ends an answer, by default the tokenizer's `eos_token_id`.

    Returns:
        The new tokens; an answer that ended is filled up with `end`.
    """
    if writer not in ("base", "chat"):
        raise ValueError(f"writer={writer!r} is not one of 'base', 'chat'.")
    if end is None:
        end = getattr(pair.tokenizer, "eos_token_id", None)
    m = 0 if writer == "base" else -1
    remembering = _remembering(pair)
    reader = pair if remembering is None else remembering
    n_prompt, n_read, over = tokens.shape[1], 0, torch.zeros(len(tokens), dtype=torch.bool)
    for _ in range(max_new_tokens):
        with _having_read(pair, n_read):
            following = reader(tokens[:, n_read:])[:, -1, m].argmax(dim=-1).to(tokens)
        n_read = 0 if remembering is None else tokens.shape[1]
        if end is not None:
            following[over.to(tokens.device)] = end
            over |= (following == end).cpu()
        tokens = torch.cat([tokens, following[:, None]], dim=1)
        if bool(over.all()):
            break
    return tokens[:, n_prompt:]


@contextmanager
def _having_read(pair: HookedModelPair, n_read: int) -> Generator[None]:
    """Inside, the pair's hook points say how many tokens were read before."""
    hooked = [hook_point for hook_point in pair.hook_dict.values() if hook_point.has_hooks(dir="fwd")]
    for hook_point in hooked:
        hook_point.ctx[N_BEFORE] = n_read
    try:
        yield
    finally:
        for hook_point in hooked:
            hook_point.ctx.pop(N_BEFORE, None)


def _remembering(pair: HookedModelPair) -> HookedModelPair | None:
    """The pair under the same hooks, of which every pass goes on where the last one ended."""
    members: list[_Reader] = []
    for model in pair.members:
        if isinstance(model, HookedTransformer):
            members.append(_HookedTransformerReader(model))
        elif isinstance(model, TransformerBridge):
            members.append(_BridgeReader(model))
        else:
            return None
    remembering = HookedModelPair(*members)
    remembering.hook_dict = pair.hook_dict
    return remembering


class _Reader(nn.Module, ABC):
    """A model as the pair uses it: `forward` remembers what it has read, looking at activations does not."""

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
        return self.host.run_with_cache(tokens, **self._after_past(tokens), **kwargs)

    @abstractmethod
    def _after_past(self, tokens: Tensor) -> dict[str, Any]:
        """What makes the host go on from the past, and leaves the past as it is: caches grow by new tensors only."""


class _HookedTransformerReader(_Reader):
    @override
    def _after_past(self, tokens: Tensor) -> dict[str, Any]:
        if self.past is None:
            self.past = TransformerLensKeyValueCache.init_cache(self.host.cfg, device_of(self.host), len(tokens))
        past = copy_key_value_cache(self.past)
        # Without a mask it would ask the tokenizer for one, which there need not be.
        return {"past_kv_cache": past, "attention_mask": torch.ones_like(tokens)}

    @override
    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        options = self._after_past(tokens)
        logits = self.host(tokens, **options, **kwargs)
        self.past = options["past_kv_cache"]
        return logits


class _BridgeReader(_Reader):
    @override
    def _after_past(self, tokens: Tensor) -> dict[str, Any]:
        if self.past is None:
            return {"use_cache": False}
        return {"use_cache": True, "past_key_values": copy_key_value_cache(self.past)}

    @override
    def forward(self, tokens: Tensor, **kwargs: Any) -> Tensor:
        options = {**self._after_past(tokens), "use_cache": True, **kwargs, "return_type": "logits_and_cache"}
        logits, self.past = self.host(tokens, **options)
        return logits
