"""Groups of tokens in packed rows, in which plain text and conversations follow one another."""

from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lens_crosscoder.data.chat_tokens import chat_tokens
from sae_lens_crosscoder.data.token_groups import BOS_GROUP, LEFT_OUT, TEMPLATE_GROUP, TokenGroups
from sae_lens_crosscoder.data.token_mask import kept_or_all

TEXT_GROUP: Final = "text"
PACKED_GROUPS: Final = (BOS_GROUP, TEMPLATE_GROUP, "user", "assistant", TEXT_GROUP)
_BOS, _TEMPLATE, _USER, _ASSISTANT, _TEXT = range(len(PACKED_GROUPS))


class _Piece(NamedTuple):
    """What the template writes in one place, whose words come before it, and whose come after it."""

    ids: list[int]
    before: int
    after: int


def packed_token_groups(
    tokens: Int[Tensor, "batch pos"], tokenizer: Any, keep: Bool[Tensor, "batch pos"] | None = None
) -> TokenGroups:
    """The groups `bos`, `template`, `user`, `assistant` and `text` of rows that were cut from a stream of documents.

    The template's own tokens are looked for as the tokenizer writes them around the turns of a user and an assistant.
    What is between them belongs to whom they announce; everything else, other roles included, is `text`. A row that
    begins in the middle of a turn is told by the first piece of the template after it.

    Args:
        keep: which tokens have a group; the others are left out. Of these, the ones behind the last that is kept are
            not read, as padding says nothing about the words in front of it.

    Raises:
        ValueError: for a tokenizer without a chat template, or a `keep` of another shape.
    """
    keep = kept_or_all(tokens, keep)
    pieces = _pieces(tokenizer)
    labels = torch.full(tokens.shape, LEFT_OUT)
    for i, (row, kept) in enumerate(zip(tokens, keep, strict=True)):
        n_read = len(kept) - int(kept.flip(0).long().argmax()) if kept.any() else 0
        labels[i, :n_read] = torch.tensor(_labels(row[:n_read].tolist(), pieces, tokenizer.bos_token_id))
    return TokenGroups(labels.masked_fill(~keep.cpu(), LEFT_OUT), PACKED_GROUPS)


def _pieces(tokenizer: Any) -> list[_Piece]:
    """The template's pieces, the longest first, because one may begin with another."""
    # Without words, because there is none that every tokenizer knows.
    messages = [{"role": role, "content": ""} for role in ("user", "assistant", "user", "assistant")]
    chat = chat_tokens(tokenizer, messages)
    places = {0: (_TEXT, _USER), 1: (_USER, _ASSISTANT), 2: (_ASSISTANT, _USER), 4: (_ASSISTANT, _TEXT)}
    pieces = [
        _Piece(chat.input_ids[chat.template & (chat.n_before == n_before)].tolist(), before, after)
        for n_before, (before, after) in places.items()
    ]
    return sorted((piece for piece in pieces if piece.ids), key=lambda piece: -len(piece.ids))


def _labels(row: list[int], pieces: Sequence[_Piece], bos_id: int | None) -> list[int]:
    labels: list[int] = []
    speaker, is_known = _TEXT, False
    while len(labels) < len(row):
        rest = row[len(labels) :]
        # The row's end may cut a piece off.
        piece = next((piece for piece in pieces if rest[: len(piece.ids)] == piece.ids[: len(rest)]), None)
        if rest[0] == bos_id:
            labels.append(_BOS)
            speaker, is_known = _TEXT, True
        elif piece is not None:
            if not is_known:
                labels = [piece.before] * len(labels)
            labels += [_TEMPLATE] * min(len(piece.ids), len(rest))
            speaker, is_known = piece.after, True
        else:
            labels.append(speaker)
    return labels
