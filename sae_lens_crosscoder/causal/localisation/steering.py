"""Steering effect of directions: the KL that base + direction brings back, and the next tokens it predicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import validate_tokens
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.localisation.continuing import patched_logs
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model


@dataclass(frozen=True)
class SteeringEffects:
    """Effect of each direction at the last token of prompts; KL in nats."""

    kl_to_chat: Float[Tensor, "direction prompt"]
    """`KL(p_chat || p_steered)`, to compare with `KL(p_chat || p_base)`."""
    kl_from_base: Float[Tensor, "direction prompt"]
    """`KL(p_base || p_steered)`: the size of the effect, wherever it leads."""
    next_ids: Int[Tensor, "direction prompt"]
    """The most likely next token of base with the direction."""


@validate_arguments
@torch.no_grad()
def steering_effects(
    pair: HookedModelPair,
    tokens: Int[Tensor, "prompt pos"],
    last: Int[Tensor, " prompt"],
    hook_name: str,
    directions: Float[Tensor, "direction d_model"],
    *,
    batch_size: int = 8,
) -> SteeringEffects:
    """Add each direction to base's activation at the last token of every prompt, and run base from there.

    Args:
        last: position of each prompt's last token; padding is on the right.
        directions: in raw units of the residual stream at the hook, at the strength to add.

    Raises:
        ValueError: for directions of another width, no prompts, or positions after their end.
    """
    pair.validate_two("steering_effects")
    validate_tokens(tokens)
    d_model = pair.layout_at(hook_name).d_models[0]
    if len(directions) == 0 or directions.shape[-1] != d_model:
        raise ValueError(
            f"directions has shape {tuple(directions.shape)}, expected at least one row, {d_model} wide as the base "
            "model's residual stream at the hook."
        )
    if int(last.max()) >= tokens.shape[1]:
        raise ValueError(f"last contains the position {int(last.max())}, but tokens has {tokens.shape[1]} positions.")
    parts: list[Sequence[Tensor]] = []
    for rows in tqdm(torch.arange(len(tokens)).split(batch_size), desc="Steering", unit="batch", leave=False):
        batch = tokens[rows, : int(last[rows].max()) + 1]
        logits, cache = pair.run_with_cache(batch, names_filter=[hook_name])
        at_last = torch.zeros_like(batch, dtype=torch.bool)
        at_last[torch.arange(len(rows)), last[rows]] = True
        base_log, chat_log = (log_probs(logits[..., m, :][at_last.to(logits.device)]) for m in (0, -1))
        base = cache[hook_name][..., : directions.shape[-1]]
        added = at_last.to(base)[..., None] * directions.to(base)[:, None, None]
        steered = patched_logs(pair.base, base + added, hook_of_model(hook_name, 0), batch, at_last, base_log)
        to_chat, from_base = (
            kl_divergence(chat_log.expand_as(steered), steered),
            kl_divergence(base_log.expand_as(steered), steered),
        )
        parts.append([to_chat.cpu(), from_base.cpu(), steered.argmax(dim=-1).cpu()])
    return SteeringEffects(*(torch.cat(column, dim=1) for column in zip(*parts, strict=True)))
