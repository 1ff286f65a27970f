"""Text that a patched pair writes, with both models' keys and values kept from token to token."""

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.causal.patching.intervention import ModelName
from sae_lens_crosscoder.models.cached_models import with_activations
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
    cached_pair = with_caches(pair)
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


def with_caches(pair: HookedModelPair) -> HookedModelPair | None:
    """The pair under the same hooks, with each forward pass continuing from the last; None if a host has no cache."""
    members = [with_activations(model) for model in pair.members]
    if any(model is None for model in members):
        return None
    cached_pair = HookedModelPair(*members)
    cached_pair.hook_dict = pair.hook_dict
    return cached_pair
