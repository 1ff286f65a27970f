"""Answers and predictions of the base model under an edit of its activation at the decision token and after it."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.causal.ladder.edits import Edit
from sae_lens_crosscoder.causal.patching.generation import generate_patched
from sae_lens_crosscoder.causal.patching.intervention import ModelName
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import StackedLayout


@contextmanager
def apply_edit(
    pair: HookedModelPair, hook_name: str, layout: StackedLayout, edit: Edit | None, n_prompt: int
) -> Generator[None]:
    """Run the pair with the base model's activation edited from the last of `n_prompt` tokens on."""
    if edit is None:
        yield
        return

    def edit_base(stacked: Tensor, hook: HookPoint) -> Tensor:
        places = pair.patch_state.n_tokens_read + torch.arange(stacked.shape[1]) - (n_prompt - 1)
        base, *others = layout.split(stacked)
        delta = edit(stacked, places.clamp(min=0)).to(base)
        from_decision = (places >= 0).to(base.device)[:, None]
        return layout.stack([base + torch.where(from_decision, delta, 0), *others])

    with pair.hooks(fwd_hooks=[(hook_name, edit_base)]):
        yield


def prompts_by_length(contrast: Contrast, chosen: Bool[Tensor, " prompt"]) -> list[Int[Tensor, "_ _"]]:
    """The chosen prompts up to their decision tokens, together with those of the same length."""
    lengths = contrast.positions + 1
    return [
        contrast.tokens[chosen & (lengths == length)][:, : int(length)] for length in lengths[chosen].unique().tolist()
    ]


@torch.no_grad()
def answers(
    pair: HookedModelPair,
    hook_name: str,
    layout: StackedLayout,
    groups: Sequence[Int[Tensor, "_ _"]],
    edit: Edit | None,
    *,
    writer: ModelName = "base",
    max_new_tokens: int,
    batch_size: int,
) -> list[Int[Tensor, "_ _"]]:
    """Greedy answers to groups of prompts of one length each."""
    written: list[Tensor] = []
    for prompts in groups:
        parts: list[Tensor] = []
        for batch in prompts.split(batch_size):
            with apply_edit(pair, hook_name, layout, edit, prompts.shape[1]):
                parts.append(generate_patched(pair, batch, writer, max_new_tokens=max_new_tokens).cpu())
        longest = max(part.shape[1] for part in parts)
        end = getattr(pair.tokenizer, "eos_token_id", None) or 0
        padded = [torch.nn.functional.pad(part, (0, longest - part.shape[1]), value=end) for part in parts]
        written.append(torch.cat(padded))
    return written


@torch.no_grad()
def kl_at_decision(
    pair: HookedModelPair,
    hook_name: str,
    layout: StackedLayout,
    groups: Sequence[Int[Tensor, "_ _"]],
    edit: Edit | None,
    batch_size: int,
) -> Float[Tensor, " prompt"]:
    """KL from the chat model's prediction of the answer's first token to the edited base model's, in nats."""
    kl: list[Tensor] = []
    for prompts in groups:
        for batch in prompts.split(batch_size):
            with apply_edit(pair, hook_name, layout, edit, prompts.shape[1]):
                logits = pair(batch)[:, -1]
            kl.append(kl_divergence(log_probs(logits[:, -1]), log_probs(logits[:, 0])).cpu())
    return torch.cat(kl)
