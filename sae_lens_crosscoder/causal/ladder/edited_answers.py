"""Answers and predictions of the base model under edits of its activation at the decision token and after it."""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformer_lens.hook_points import HookPoint

from sae_lens_crosscoder.causal.ladder.edits import Edit
from sae_lens_crosscoder.causal.patching.generation import answer_prompts
from sae_lens_crosscoder.crosscoders.inference import hook_name_of
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair


@dataclass(frozen=True)
class Request:
    """A prompt, the edit of the base model under which it is answered, and the model that answers."""

    prompt: Int[Tensor, "_"]
    edit: Edit | None
    writer: str


@contextmanager
def apply_edits(
    pair: HookedModelPair, two: TwoModels, edits: Sequence[Edit | None], lengths: Int[Tensor, " row"]
) -> Generator[None]:
    """Run the pair with the base model's activation edited from the last token of each row's prompt on."""
    rows_of = {
        edit: torch.tensor([other is edit for other in edits]) for edit in dict.fromkeys(edits) if edit is not None
    }
    layout, place = two.crosscoder.layout, two.places[0]

    def edit_base(stacked: Tensor, hook: HookPoint) -> Tensor:
        positions = pair.patch_state.n_tokens_read + torch.arange(stacked.shape[1])
        places = positions - (lengths[:, None] - 1)
        parts = list(layout.split(stacked))
        delta = torch.zeros_like(parts[place])
        for edit, rows in rows_of.items():
            edited = (places >= 0) & rows[:, None]
            if bool(edited.any()):
                on_device = edited.to(stacked.device)
                delta[on_device] = edit(stacked[on_device], places[edited]).to(delta)
        parts[place] = parts[place] + delta
        return layout.stack(parts)

    if not rows_of:
        yield
        return
    with pair.hooks(fwd_hooks=[(hook_name_of(two.crosscoder), edit_base)]):
        yield


def prompts_by_length(contrast: Contrast, chosen: Bool[Tensor, " prompt"]) -> list[Int[Tensor, "_"]]:
    """The chosen prompts up to their decision tokens, the shortest first."""
    lengths = contrast.positions + 1
    ids = chosen.nonzero()[:, 0]
    return [contrast.tokens[i, : int(lengths[i])] for i in ids[lengths[ids].argsort(stable=True)].tolist()]


@torch.no_grad()
def answers(
    pair: HookedModelPair,
    two: TwoModels,
    requests: Sequence[Request],
    *,
    max_new_tokens: int,
    batch_size: int,
) -> list[Int[Tensor, " new"]]:
    """Greedy answers; requests of similar length are read together, whatever their edits."""
    written: list[Any] = [None] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: len(requests[i].prompt))
    starts = range(0, len(order), batch_size)
    for start in tqdm(starts, desc="Answers under edits", unit="batch", leave=False):
        ids = order[start : start + batch_size]
        batch = [requests[i] for i in ids]
        prompts = [request.prompt for request in batch]
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        with apply_edits(pair, two, [request.edit for request in batch], lengths):
            found = answer_prompts(pair, prompts, [request.writer for request in batch], max_new_tokens=max_new_tokens)
        for i, answer in zip(ids, found, strict=True):
            written[i] = answer
    return written


@torch.no_grad()
def kl_at_decision(
    pair: HookedModelPair, two: TwoModels, requests: Sequence[Request], batch_size: int
) -> Float[Tensor, " request"]:
    """KL from the chat model's prediction of the answer's first token to the edited base model's, in nats."""
    kl = torch.empty(len(requests))
    for ids in _of_one_length(requests, batch_size):
        batch = [requests[i] for i in ids]
        tokens = torch.stack([request.prompt for request in batch])
        with apply_edits(pair, two, [request.edit for request in batch], torch.full((len(ids),), tokens.shape[1])):
            logits = pair(tokens)[:, -1]
        base, chat = (log_probs(logits[:, place]) for place in two.places)
        kl[ids] = kl_divergence(chat, base).cpu().to(kl)
    return kl


def _of_one_length(requests: Sequence[Request], batch_size: int) -> Iterator[list[int]]:
    """Places of requests with prompts of one length each, at most `batch_size` at a time."""
    lengths = torch.tensor([len(request.prompt) for request in requests])
    for length in lengths.unique().tolist():
        for ids in (lengths == length).nonzero()[:, 0].split(batch_size):
            yield ids.tolist()
