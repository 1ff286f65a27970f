"""Prompts of an audit: conversations up to an answer, and texts cut where the models' predictions differ most."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.causal.forward.next_tokens import kl_between_models
from sae_lens_crosscoder.data.chat_tokens import ChatTokens, chat_tokens, end_of_turn_ids
from sae_lens_crosscoder.data.prompts import Messages, load_prompts, request_of
from sae_lens_crosscoder.data.text_tokens import text_tokens
from sae_lens_crosscoder.models.generation import context_limit, similar_lengths
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.tiny import plain_texts
from sae_lens_crosscoder.workflows.auditing.config import LEAST_PROMPTS, AuditConfig
from sae_lens_crosscoder.workflows.given_prompts import given_prompts

_LEAST_TEXT = 4
"""Tokens before a text may be cut."""


@dataclass(frozen=True)
class AuditPrompts:
    """Prompts that both models are to answer, in an order of which every beginning is a fair sample."""

    chats: tuple[ChatTokens, ...]
    texts: tuple[str, ...]
    """What each says, for the words that mark a change: the user's last message, or the text."""
    end_ids: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.chats)

    def first(self, n: int) -> "AuditPrompts":
        """The first n prompts."""
        return AuditPrompts(self.chats[:n], self.texts[:n], self.end_ids)

    @property
    def held_out(self) -> Bool[Tensor, " prompt"]:
        """True for every second prompt."""
        return torch.arange(len(self)) % 2 == 1

    @cached_property
    def tokens(self) -> tuple[Int[Tensor, "prompt pos"], Bool[Tensor, "prompt pos"]]:
        """Token ids padded on the right, and the mask of what is no padding."""
        rows = [chat.input_ids for chat in self.chats]
        lengths = torch.tensor([len(row) for row in rows])
        tokens = pad_sequence(rows, batch_first=True, padding_value=self.end_ids[0])
        return tokens, torch.arange(tokens.shape[1])[None] < lengths[:, None]


def audit_prompts(cfg: AuditConfig, pair: HookedModelPair) -> AuditPrompts:
    """Read and tokenize the prompts and texts, shuffled.

    Raises:
        ValueError: without prompts for another than the built-in pair, or for too few.
    """
    conversations, texts = sources(cfg)
    room = min(context_limit(model) for model in pair.members) - cfg.max_new_tokens
    tokenizer = pair.tokenizer
    requests = [request_of(messages) for messages in conversations]
    chats = [chat_tokens(tokenizer, request, add_generation_prompt=True) for request in requests]
    read = [(chat, request[-1]["content"]) for chat, request in zip(chats, requests, strict=True)]
    read += [
        (text_tokens(ids, tokenizer), tokenizer.decode(ids.tolist(), skip_special_tokens=True))
        for ids in _cut(pair, texts, room, cfg.batch_size)
    ]
    # A prompt given twice would count twice: its sampled answers are the same.
    read = list({tuple(chat.input_ids.tolist()): (chat, text) for chat, text in read}.values())
    read = [(chat, text) for chat, text in read if len(chat.input_ids) <= room]
    Random(f"audit/{cfg.seed}").shuffle(read)
    read = read[: cfg.n_prompts]
    if len(read) < LEAST_PROMPTS:
        raise ValueError(
            f"The data have {len(read)} different prompts that leave room for {cfg.max_new_tokens} new tokens. Pass at "
            f"least {LEAST_PROMPTS}, half of which are held out."
        )
    ends = [*end_of_turn_ids(tokenizer, requests[0]), *tokenizer.all_special_ids]
    return AuditPrompts(tuple(chat for chat, _ in read), tuple(text for _, text in read), tuple(dict.fromkeys(ends)))


def sources(cfg: AuditConfig) -> tuple[Sequence[Messages], Sequence[str]]:
    """Conversations and texts from the files, or those of the built-in pair."""
    texts = [] if cfg.texts is None else [messages[-1]["content"] for messages in load_prompts(cfg.texts)]
    names, n = (cfg.base, cfg.chat), -(-cfg.n_prompts // 2)
    conversations = given_prompts(cfg.data, names, "data", n, cfg.seed)
    if cfg.data is None and not texts:  # the built-in pair: other models without `data` were refused
        texts = plain_texts(n, cfg.seed)
    return conversations, texts


def _cut(pair: HookedModelPair, texts: Sequence[str], room: int, batch_size: int) -> list[Int[Tensor, " pos"]]:
    """Each text up to the token after which the models' predictions differ most, without its last token."""
    tokenizer: Any = pair.tokenizer
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [torch.tensor([*start, *tokenizer(text, add_special_tokens=False)["input_ids"]][:room]) for text in texts]
    rows = [row for row in rows if len(row) > _LEAST_TEXT]
    cut = list(rows)
    for chosen in similar_lengths([len(row) for row in rows], batch_size):
        longest = max(len(rows[i]) for i in chosen)
        # Filled up with its own last token, whose predictions are not read.
        tokens = torch.stack([torch.cat([rows[i], rows[i][-1:].expand(longest - len(rows[i]))]) for i in chosen])
        for i, kl in zip(chosen, kl_between_models(pair, tokens, batch_size=batch_size).cpu(), strict=True):
            last = _LEAST_TEXT - 1 + int(kl[_LEAST_TEXT - 1 : len(rows[i]) - 1].argmax())
            cut[i] = rows[i][: last + 1]
    return cut
