"""Answers and predictions of the base model under an edit of its activation at the decision token and after it."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.causal.ladder.edits import Edit
from sae_lens_crosscoder.causal.patching.generation import answer_prompts
from sae_lens_crosscoder.crosscoders.inference import hook_name_of
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair


@contextmanager
def apply_edit(
    pair: HookedModelPair, two: TwoModels, edit: Edit | None, lengths: Int[Tensor, " row"]
) -> Generator[None]:
    """Run the pair with the base model's activation edited from the last token of each row's prompt on."""
    if edit is None:
        yield
        return

    layout, place = two.crosscoder.layout, two.places[0]

    def edit_base(stacked: Tensor, hook: HookPoint) -> Tensor:
        positions = pair.patch_state.n_tokens_read + torch.arange(stacked.shape[1])
        places = positions - (lengths[:, None] - 1)
        parts = list(layout.split(stacked))
        base = parts[place]
        edited = (places >= 0).to(base.device)
        if not bool(edited.any()):
            return stacked
        delta = torch.zeros_like(base)
        delta[edited] = edit(stacked[edited], places[edited.cpu()]).to(base)
        parts[place] = base + delta
        return layout.stack(parts)

    with pair.hooks(fwd_hooks=[(hook_name_of(two.crosscoder), edit_base)]):
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
    two: TwoModels,
    groups: Sequence[Int[Tensor, "_ _"]],
    edit: Edit | None,
    *,
    writer: str,
    max_new_tokens: int,
    batch_size: int,
) -> list[Int[Tensor, "_ _"]]:
    """Greedy answers to groups of prompts of one length each."""
    prompts = [prompt for group in groups for prompt in group]
    written: list[Tensor] = []
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        lengths = torch.tensor([len(prompt) for prompt in batch])
        with apply_edit(pair, two, edit, lengths):
            written += answer_prompts(pair, batch, writer, max_new_tokens=max_new_tokens)
    ends = torch.tensor([len(group) for group in groups]).cumsum(dim=0).tolist()
    starts = [0, *ends[:-1]]
    return [torch.stack(written[start:end]) for start, end in zip(starts, ends, strict=True)]


@torch.no_grad()
def kl_at_decision(
    pair: HookedModelPair,
    two: TwoModels,
    groups: Sequence[Int[Tensor, "_ _"]],
    edit: Edit | None,
    batch_size: int,
) -> Float[Tensor, " prompt"]:
    """KL from the chat model's prediction of the answer's first token to the edited base model's, in nats."""
    kl: list[Tensor] = []
    for prompts in groups:
        for batch in prompts.split(batch_size):
            with apply_edit(pair, two, edit, torch.full((len(batch),), batch.shape[1])):
                logits = pair(batch)[:, -1]
            base, chat = (log_probs(logits[:, place]) for place in two.places)
            kl.append(kl_divergence(chat, base).cpu())
    return torch.cat(kl)
