"""Paired activations of given tokens, batch by batch."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.data.token_mask import kept_or_all
from sae_lens_crosscoder.models.pair import HookedModelPair


def harvest(
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    batch_size_prompts: int = 32,
    keep: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[Float[Tensor, "token d_in"]]:
    """Stacked activations at one hook, prompts in order and positions in order within a prompt.

    Both models stop after the hook's layer. Where `keep` is False, as on padding, tokens are left out. Raises a
    ValueError, before anything runs, for a hook that the pair does not have, tokens that are no (batch, pos) tensor, or
    a `keep` of another shape.
    """
    pair.require_hook(hook_name)
    require_tokens(tokens)
    return _batches(pair, tokens, hook_name, batch_size_prompts, kept_or_all(tokens, keep))


def require_tokens(tokens: Int[Tensor, "batch pos"]) -> None:
    """Raise a ValueError for what is no (batch, pos) tensor of token ids."""
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens must be a non-empty (batch, pos) tensor of ids, not of shape {tuple(tokens.shape)}.")
    if int(tokens.min()) < 0:  # which embeddings would read from the end of the vocabulary
        raise ValueError(f"tokens hold the id {int(tokens.min())}: remove padding such as -100 before harvesting.")


def _batches(
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    batch_size_prompts: int,
    keep: Bool[Tensor, "batch pos"],
) -> Iterator[Float[Tensor, "token d_in"]]:
    for prompts, kept in zip(tokens.split(batch_size_prompts), keep.split(batch_size_prompts), strict=True):
        with torch.no_grad():
            activations = pair.activations(prompts, hook_name)
        yield activations.flatten(0, 1) if kept.all() else activations[kept.to(activations.device)]
