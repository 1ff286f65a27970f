"""Paired activations of given tokens, batch by batch, and the checks that tokens and activations must pass."""

from collections.abc import Iterator

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.token_mask import as_token_mask, validate_padding
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import validate_embedded
from sae_lens_crosscoder.stacking import StackedLayout


class NonFiniteError(ValueError):
    """NaN or infinite activations; the message names the model and the place."""


@validate_arguments
def harvest(
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    batch_size: int = 32,
    token_mask: Bool[Tensor, "batch pos"] | None = None,
) -> Iterator[Float[Tensor, "token d_in"]]:
    """Stacked activations at a hook, in the order of prompts and positions, one batch of prompts at a time.

    All models stop after the hook's layer, or after the last of several joined by `+`.

    Args:
        batch_size: prompts per forward pass.
        token_mask: False for tokens to leave out, such as padding; None for all tokens.

    Raises:
        ValueError: before anything runs, for an unknown hook, tokens that are not (batch, pos), that a model has no
            embedding of or that are padded on the left, a mask of another shape, or, of models with different
            tokenizers, one with tokens that are not `pair.aligned`.
    """
    pair.validate_hook(hook_name)
    validate_tokens(tokens)
    validate_embedded(pair, tokens)
    validate_padding(tokens, token_mask, pair.tokenizer)
    token_mask = as_token_mask(tokens, token_mask)
    pair.validate_aligned(tokens, token_mask)
    return _batches(pair, tokens, hook_name, batch_size, token_mask)


def validate_tokens(tokens: Int[Tensor, "batch pos"]) -> None:
    """Raise a ValueError unless tokens are a non-empty (batch, pos) tensor of ids."""
    if tokens.ndim != 2 or tokens.numel() == 0:
        raise ValueError(f"tokens has shape {tuple(tokens.shape)}, expected a non-empty (batch, pos) tensor of ids.")
    if int(tokens.min()) < 0:  # embeddings would read a negative id from the end of the vocabulary
        raise ValueError(f"tokens contains the id {int(tokens.min())}. Replace padding such as -100 and mask it.")


def validate_activations(activations: Float[Tensor, "batch d_in"], layout: StackedLayout, where: str) -> None:
    """Raise unless activations are (token, d_in), as wide as the layout, and finite.

    Args:
        where: completes the error message, such as "at step 3".

    Raises:
        ValueError: for another shape.
        NonFiniteError: for NaN or infinity.
    """
    if activations.ndim != 2:
        raise ValueError(
            f"The activations {where} have shape {tuple(activations.shape)}, expected (token, d_in). Flatten "
            "(batch, pos, d_in) with activations.flatten(0, 1)."
        )
    parts = layout.split(activations)  # raises for another width
    if torch.isfinite(activations.sum()):  # one pass; NaN and infinity always reach the sum, but it may overflow
        return
    for owner, part in zip(layout.owners, parts, strict=True):
        if torch.isfinite(part).all():
            continue
        n_bad = int((~torch.isfinite(part)).any(dim=-1).sum())
        raise NonFiniteError(
            f"The {owner} activations are NaN or infinite on {n_bad} of {len(part)} tokens {where}. Check "
            "that model's dtype (float16 overflows where bfloat16 does not) and the hook."
        )


def _batches(
    pair: HookedModelPair,
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    batch_size: int,
    token_mask: Bool[Tensor, "batch pos"],
) -> Iterator[Float[Tensor, "token d_in"]]:
    for prompts, mask in zip(tokens.split(batch_size), token_mask.split(batch_size), strict=True):
        with torch.no_grad():
            activations = pair.activations(prompts, hook_name)
        all_tokens = rearrange(activations, "batch pos d_in -> (batch pos) d_in")
        yield all_tokens if mask.all() else activations[mask.to(activations.device)]
