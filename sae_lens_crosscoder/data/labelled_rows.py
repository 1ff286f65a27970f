"""Labelled rows: tokens with the group and the source of each, from conversations, texts or the built-in corpus."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.beginnings import is_bos
from sae_lens_crosscoder.data.chat_tokens import chat_tokens
from sae_lens_crosscoder.data.token_groups import (
    BOS_GROUP,
    EXCLUDED,
    TEMPLATE_GROUP,
    TEXT_GROUP,
    TokenGroups,
    token_groups,
)
from sae_lens_crosscoder.models.tiny import tiny_dataset, tiny_tokenizer

_CHAT, _WEB = "chat", "web"


@dataclass(frozen=True)
class LabelledRows:
    """Tokens with their groups and sources, as `latent_statistics` takes them."""

    tokens: Int[Tensor, "batch pos"]
    groups: TokenGroups
    sources: Sequence[str] | TokenGroups
    """The source of each row, or of each token."""


@validate_arguments
def labelled_rows(
    tokenizer: Any, chats: Sequence[Sequence[dict[str, str]]], texts: Sequence[str] = (), max_length: int = 1024
) -> LabelledRows:
    """One row per conversation (source `chat`) and per text (source `web`), with the groups of `token_groups`.

    Rows are truncated to `max_length` tokens and padded on the right with excluded tokens. Plain text has the group
    `text`, after the beginning of sequence that the tokenizer adds.

    Args:
        chats: conversations, each a sequence of messages with `role` and `content`.
        texts: plain documents.

    Raises:
        ValueError: without chats and texts, or for a conversation that `chat_tokens` refuses.
    """
    if not chats and not texts:
        raise ValueError("`chats` and `texts` are both empty. Pass at least one conversation or text.")
    conversations = [chat_tokens(tokenizer, list(messages)) for messages in chats]
    chat_groups = token_groups(conversations, tokenizer) if conversations else None
    chat_names = () if chat_groups is None else chat_groups.names
    names = tuple(sorted({*chat_names, BOS_GROUP, TEXT_GROUP}))
    new_labels = torch.tensor([*(names.index(name) for name in chat_names), EXCLUDED])  # -1 indexes the last
    labels = [] if chat_groups is None else list(new_labels[chat_groups.labels])
    ids = [chat.input_ids for chat in conversations]
    for text in texts:
        ids.append(torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64))
        labels.append(torch.where(is_bos(ids[-1], tokenizer), names.index(BOS_GROUP), names.index(TEXT_GROUP)))
    tokens = pad_sequence(ids, batch_first=True)[:, :max_length]
    groups = TokenGroups(pad_sequence(labels, batch_first=True, padding_value=EXCLUDED)[:, :max_length], names)
    return LabelledRows(tokens, groups, [_CHAT] * len(chats) + [_WEB] * len(texts))


@validate_arguments
def tiny_labelled_rows(n_rows: int, seed: int = 0) -> LabelledRows:
    """Held-out rows of the built-in pair: plain text, and dialogues of combinations that training never saw.

    A row contains several documents, so `sources` names the source of each token.
    """
    rows = tiny_dataset(n_rows, seed, split="held_out").with_format("torch")[:]
    tokens, role = rows["input_ids"], rows["role"]
    begins = is_bos(tokens, tiny_tokenizer())
    names = (TEXT_GROUP, "user", "assistant", TEMPLATE_GROUP, BOS_GROUP)  # the first four in the order of the roles
    groups = TokenGroups(torch.where(begins, names.index(BOS_GROUP), role), names)
    # A beginning belongs to the document after it.
    is_text = torch.where(begins, role.roll(-1, dims=1), role) == names.index(TEXT_GROUP)
    return LabelledRows(tokens, groups, TokenGroups(is_text.long(), (_CHAT, _WEB)))
