"""Forward passes resumed from edited residual streams at a hook, without running the layers before it."""

import re
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.forward.later_layers import (
    LaterLayers,
    has_later_layers,
    later_layers_of,
    validate_later_layers,
)
from sae_lens_crosscoder.models.hook_access import device_of, validate_hook_name

_RESIDUAL_STREAM = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


@validate_arguments
@torch.no_grad()
def resume_from(
    model: Any,
    residual: Float[Tensor, "intervention prompt pos d_model"],
    hook_name: str,
    tokens: Int[Tensor, "prompt pos"],
    positions: Bool[Tensor, "prompt pos"] | None = None,
    *,
    share_prefix: bool = True,
    batch_size: int = 32,
    progress: bool = True,
) -> Float[Tensor, "intervention selected d_vocab"]:
    """Logits of a model with its residual stream at a hook replaced, once per intervention.

    Equals one hook and one full forward pass per intervention, but layers before the hook are skipped, interventions
    are batched, and only the selected positions are unembedded. First positions on which all interventions agree run
    once per prompt, and their keys and values are shared.

    Args:
        model: a HookedTransformer or a TransformerBridge. Hooks on later layers fire as often as these layers run.
        residual: the new residual stream at the hook.
        hook_name: `blocks.L.hook_resid_pre` or `blocks.L.hook_resid_post`.
        tokens: the prompts' ids, padded on the right if at all.
        positions: mask of the positions to return logits at, prompt by prompt; None means all.
        share_prefix: False runs all positions of every intervention.
        batch_size: prompts per forward pass, counted once per intervention; it bounds the memory.
        progress: show a progress bar.

    Raises:
        ValueError: for another kind of model or hook, or shapes that do not match.
    """
    later = later_layers_of(model, first_layer(model, hook_name))
    positions = torch.ones_like(tokens, dtype=torch.bool) if positions is None else positions
    _validate_shapes(residual, tokens, positions, int(model.cfg.d_model))
    device = device_of(model)
    parts: list[Tensor] = []
    n_rows = residual.shape[0] * residual.shape[1]
    with tqdm(total=n_rows, desc="Resuming", unit="prompt", leave=False, disable=not progress) as bar:
        for prompts in torch.arange(len(tokens)).split(batch_size):
            batch = residual[:, prompts.to(residual.device)]
            selected = positions[prompts].to(device)
            n_shared = _shared_prefix(batch, selected) if share_prefix else 0
            parts.append(_resumed(later, batch, tokens[prompts].to(device), selected, n_shared, batch_size, bar))
    return torch.cat(parts, dim=1)


def can_resume(model: Any, hook_name: str) -> bool:
    """True if `resume_from` supports the model and the hook, judged by its name."""
    return _RESIDUAL_STREAM.fullmatch(hook_name) is not None and has_later_layers(model)


def validate_resumable(model: Any, hook_name: str) -> None:
    """Raise a ValueError unless `resume_from` supports the model and the hook."""
    first_layer(model, hook_name)


def _resumed(
    later: LaterLayers,
    residual: Float[Tensor, "intervention prompt pos d_model"],
    tokens: Int[Tensor, "prompt pos"],
    positions: Bool[Tensor, "prompt pos"],
    n_shared: int,
    batch_size: int,
    bar: Any,
) -> Float[Tensor, "intervention selected d_vocab"]:
    """Logits of one batch of prompts; their first `n_shared` positions run once."""
    past = None
    if n_shared:
        past = later.keys_and_values(residual[0, :, :n_shared].to(tokens.device), tokens[:, :n_shared])
    edited = rearrange(residual[:, :, n_shared:], "edit prompt pos d_model -> (edit prompt) pos d_model")
    logits: list[Tensor] = []
    with later.alone():
        for rows in torch.arange(len(edited), device=tokens.device).split(batch_size):
            prompts = rows % len(tokens)
            batch = edited[rows.to(edited.device)].to(tokens.device)
            selected = positions[prompts, n_shared:]
            logits.append(later.logits(batch, tokens[prompts, n_shared:], selected, past, prompts))
            bar.update(len(rows))
    return rearrange(torch.cat(logits), "(edit selected) d_vocab -> edit selected d_vocab", edit=len(residual))


def first_layer(model: Any, hook_name: str) -> int:
    """The first layer that reads what was written at the hook."""
    validate_later_layers(model)
    validate_hook_name(hook_name, model.hook_dict)
    match = _RESIDUAL_STREAM.fullmatch(hook_name)
    if match is None:
        raise ValueError(
            f"A forward pass cannot resume from {hook_name!r}, because later layers read more than its value. Use the "
            "residual stream, such as 'blocks.0.hook_resid_post', or `patched`, which runs full passes."
        )
    return int(match[1]) + (match[2] == "post")


def _shared_prefix(residual: Tensor, positions: Tensor) -> int:
    """Number of first positions that no intervention edits and no logits are selected at."""
    if len(residual) == 1:
        return 0
    unedited = (residual[1:] == residual[:1]).flatten(0, 1).all(dim=-1).all(dim=0)
    first_edited = int(unedited.long().cumprod(dim=0).sum())
    return min(first_edited, int(positions.any(dim=0).long().argmax()))


def _validate_shapes(residual: Tensor, tokens: Tensor, positions: Tensor, d_model: int) -> None:
    if residual.ndim != 4 or residual.shape[1:3] != tokens.shape or positions.shape != tokens.shape:
        raise ValueError(
            f"Shapes do not match: residual {tuple(residual.shape)} must be (intervention, prompt, pos, d_model), and "
            f"positions {tuple(positions.shape)} must be like tokens {tuple(tokens.shape)} (prompt, pos)."
        )
    if residual.shape[-1] != d_model:
        raise ValueError(f"residual is {residual.shape[-1]} wide, but the model's residual stream is {d_model} wide.")
    if residual.numel() == 0:
        raise ValueError(f"residual is empty (shape {tuple(residual.shape)}): pass at least one residual stream.")
