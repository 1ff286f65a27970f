"""Many edited residual streams go on from a hook: the layers before it are run for none of them."""

import re
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.causal.forward.later_layers import LaterLayers, later_layers_of
from sae_lens_crosscoder.models.hook_access import device_of, validate_hook_name

_RESIDUAL_STREAM = re.compile(r"blocks\.(\d+)\.hook_resid_(pre|post)")


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
    """The model's logits with its residual stream at a hook replaced, once per intervention.

    They are those of one hook and one full forward pass per intervention. But layers before the hook are not run,
    interventions are batched, and only the positions that are asked for are unembedded. Where all interventions agree
    on the first positions, these run once per prompt, and their keys and values are shared.

    Args:
        model: a HookedTransformer or a TransformerBridge. Hooks on its later layers fire, as often as these run.
        residual: what the residual stream at the hook becomes.
        hook_name: `blocks.L.hook_resid_pre` or `blocks.L.hook_resid_post`.
        tokens: the prompts' ids, padded on the right if at all.
        positions: where logits are wanted; None means everywhere. The result has them prompt by prompt.
        share_prefix: False runs all positions of every intervention.
        batch_size: how many prompts, counted once per intervention, run at a time: what bounds the memory.
        progress: whether to show a bar.

    Raises:
        ValueError: for another kind of model or hook, or shapes that do not fit each other.
    """
    later = later_layers_of(model, _first_layer(model, hook_name))
    positions = torch.ones_like(tokens, dtype=torch.bool) if positions is None else positions
    _refuse_shapes(residual, tokens, positions)
    device = device_of(model)
    parts: list[Tensor] = []
    n_rows = residual.shape[0] * residual.shape[1]
    with tqdm(total=n_rows, desc="Patching", unit="prompt", leave=False, disable=not progress) as bar:
        for prompts in torch.arange(len(tokens)).split(batch_size):
            some_tokens, some_positions = tokens[prompts].to(device), positions[prompts].to(device)
            some_residual = residual[:, prompts.to(residual.device)]
            n_shared = _shared_prefix(some_residual, some_positions) if share_prefix else 0
            parts.append(_resumed(later, some_residual, some_tokens, some_positions, n_shared, batch_size, bar))
    return torch.cat(parts, dim=1)


def _resumed(
    later: LaterLayers,
    residual: Float[Tensor, "intervention prompt pos d_model"],
    tokens: Int[Tensor, "prompt pos"],
    positions: Bool[Tensor, "prompt pos"],
    n_shared: int,
    batch_size: int,
    bar: Any,
) -> Float[Tensor, "intervention selected d_vocab"]:
    """The logits of as many prompts as fit in a batch; their first `n_shared` positions run once."""
    past = None
    if n_shared:
        past = later.keys_and_values(residual[0, :, :n_shared].to(tokens.device), tokens[:, :n_shared])
    edited = residual[:, :, n_shared:].flatten(0, 1)
    logits: list[Tensor] = []
    with later.alone():
        for rows in torch.arange(len(edited), device=tokens.device).split(batch_size):
            prompts = rows % len(tokens)  # intervention by intervention
            some_edited = edited[rows.to(edited.device)].to(tokens.device)
            wanted = positions[prompts, n_shared:]
            logits.append(later.logits(some_edited, tokens[prompts, n_shared:], wanted, past, prompts))
            bar.update(len(rows))
    return torch.cat(logits).unflatten(0, (len(residual), -1))


def _first_layer(model: Any, hook_name: str) -> int:
    """The first layer that sees what was written at the hook."""
    validate_hook_name(hook_name, model.hook_dict)
    match = _RESIDUAL_STREAM.fullmatch(hook_name)
    if match is None:
        raise ValueError(
            f"A forward pass cannot be resumed from {hook_name!r}, whose value is not all that later layers see. Use "
            "the residual stream, such as 'blocks.0.hook_resid_post', or hooks and full passes (patched)."
        )
    return int(match[1]) + (match[2] == "post")


def _shared_prefix(residual: Tensor, positions: Tensor) -> int:
    """How many first positions no intervention edits and nobody asks for."""
    if len(residual) == 1:
        return 0
    unedited = (residual[1:] == residual[:1]).flatten(0, 1).all(dim=-1).all(dim=0)
    first_edited = int(unedited.long().cumprod(dim=0).sum())
    return min(first_edited, int(positions.any(dim=0).long().argmax()))


def _refuse_shapes(residual: Tensor, tokens: Tensor, positions: Tensor) -> None:
    if residual.ndim != 4 or residual.shape[1:3] != tokens.shape or positions.shape != tokens.shape:
        raise ValueError(
            f"residual {tuple(residual.shape)} must be (intervention, prompt, pos, d_model), and positions "
            f"{tuple(positions.shape)} like tokens {tuple(tokens.shape)} (prompt, pos): they do not fit."
        )
    if residual.numel() == 0:
        raise ValueError(f"There is nothing to resume from: residual has shape {tuple(residual.shape)}.")
