"""Token groups: beginning of sequence, the chat template's tokens, and the words of each speaker."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, NamedTuple, get_args

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.beginnings import document_start_id, is_bos
from sae_lens_crosscoder.data.chat_tokens import ChatTokens, chat_tokens, validate_tokenizer
from sae_lens_crosscoder.data.token_mask import as_token_mask

BOS_GROUP: Final = "bos"
TEMPLATE_GROUP: Final = "template"
TEXT_GROUP: Final = "text"
EXCLUDED: Final = -1
_SPEAKERS = ("user", "assistant")

PACKED_GROUPS: Final = (BOS_GROUP, TEMPLATE_GROUP, *_SPEAKERS, TEXT_GROUP)
_BOS, _TEMPLATE, _USER, _ASSISTANT, _TEXT = range(len(PACKED_GROUPS))

By = Literal["role", "token", "place"]


@dataclass(frozen=True)
class TokenGroups:
    """The group of every token of a batch of contexts.

    >>> groups = TokenGroups(torch.tensor([[0, 1, 1]]), ("bos", "user"))
    >>> groups.drop_first_n(2).labels
    tensor([[-1, -1,  1]])
    """

    labels: Int[Tensor, "batch pos"]
    """Index into `names`; -1 for tokens that are excluded from all groups, such as padding."""
    names: tuple[str, ...]
    """`frac_template` leaves out `bos` and counts `template`, alone or as the first word of a name."""

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names={self.names} contains duplicates. Give every group its own name.")
        low, high = (EXCLUDED, EXCLUDED) if self.labels.numel() == 0 else map(int, self.labels.aminmax())
        if low < EXCLUDED or high >= len(self.names):
            raise ValueError(
                f"labels range from {low} to {high}, expected -1 to {len(self.names) - 1}: a label is an index into "
                "names, or -1 for an excluded token."
            )

    @validate_arguments
    def drop_first_n(self, n: int) -> "TokenGroups":
        """The same groups with the first n tokens of every context excluded, whose activations can be huge."""
        if n < 0:
            raise ValueError(f"n={n} must be at least 0: the number of tokens to exclude from every context.")
        labels = self.labels.clone()
        labels[:, :n] = EXCLUDED
        return replace(self, labels=labels)

    @property
    def is_template(self) -> tuple[bool, ...]:
        """True for each group of template tokens."""
        return tuple(name.split(" ")[0] == TEMPLATE_GROUP for name in self.names)


@validate_arguments
def token_groups(chats: Sequence[ChatTokens], tokenizer: Any, by: By = "role") -> TokenGroups:
    r"""The groups of conversations: `bos`, the template's, `user`, `assistant`, and `other` for further roles.

    Rows are as long as the longest conversation; positions after the end of a shorter one are excluded. Their tokens
    are `torch.nn.utils.rnn.pad_sequence([chat.input_ids for chat in chats], batch_first=True)`.

    Args:
        tokenizer: the tokenizer given to `chat_tokens`, for the names of template tokens.
        by: how to split the template: not at all (`role`); by `token`, such as `template '<end_of_turn>'`; or by
            `place`: the speakers before and after, the index within the place, and the token, such as
            `template user>assistant 2 '<start_of_turn>'`. The ends of a conversation are `start` and `end`.
    """
    if by not in get_args(By):
        raise ValueError(f"by={by!r} is not one of {get_args(By)}.")
    if not chats:
        raise ValueError("`chats` is empty. Pass results of chat_tokens.")
    validate_tokenizer(tokenizer)
    rows = [_group_names(chat, tokenizer, by) for chat in chats]
    names = sorted({name for row in rows for name in row})
    index = {name: i for i, name in enumerate(names)}
    labels = [torch.tensor([index[name] for name in row]) for row in rows]
    return TokenGroups(pad_sequence(labels, batch_first=True, padding_value=EXCLUDED), tuple(names))


def _group_names(chat: ChatTokens, tokenizer: Any, by: By) -> list[str]:
    """The name of each token's group."""
    names: list[str] = []
    n_template: dict[int, int] = {}  # template tokens so far, by the number of contents before them
    edges = ("start", *chat.message_roles, "end")
    columns = (chat.input_ids, chat.message, chat.n_before, chat.bos, chat.template)
    for token, message, n_before, bos, template in zip(*(column.tolist() for column in columns), strict=True):
        if bos:
            names.append(BOS_GROUP)
        elif not template:
            role = chat.message_roles[message]
            names.append(role if role in _SPEAKERS else "other")
        else:
            text, index = repr(tokenizer.decode([token])), n_template.get(n_before, 0)
            n_template[n_before] = index + 1
            between = f"{edges[n_before]}>{edges[n_before + 1]}"
            endings = {"role": "", "token": f" {text}", "place": f" {between} {index} {text}"}
            names.append(TEMPLATE_GROUP + endings[by])
    return names


class _TemplatePiece(NamedTuple):
    """The ids that the template writes in one place, and the groups of the words before and after them."""

    ids: list[int]
    before: int
    after: int


def packed_token_groups(
    tokens: Int[Tensor, "batch pos"], tokenizer: Any, token_mask: Bool[Tensor, "batch pos"] | None = None
) -> TokenGroups:
    """The groups `bos`, `template`, `user`, `assistant` and `text` of rows cut from a stream of documents.

    Finds the template's tokens as the tokenizer writes them around the turns of a user and an assistant. Words belong
    to the speaker that the piece before them announces; everything else, other roles included, is `text`. A row that
    begins in the middle of a turn is labelled by the first piece of the template after it.

    Args:
        token_mask: False for tokens to exclude. Tokens after a row's last True are not read at all, because padding
            says nothing about the words before it.

    Raises:
        ValueError: for a tokenizer without a chat template, or a mask of another shape.
    """
    token_mask = as_token_mask(tokens, token_mask)
    pieces, bos_id = _template_pieces(tokenizer), document_start_id(tokenizer)
    labels = torch.full(tokens.shape, EXCLUDED)
    for i, (row, mask) in enumerate(zip(tokens, token_mask, strict=True)):
        n_read = len(mask) - int(mask.flip(0).long().argmax()) if mask.any() else 0
        labels[i, :n_read] = torch.tensor(_packed_labels(row[:n_read].tolist(), pieces, bos_id))
        labels[i, :1] = torch.where(is_bos(row[:1], tokenizer).cpu(), _BOS, labels[i, :1])
    return TokenGroups(labels.masked_fill(~token_mask.cpu(), EXCLUDED), PACKED_GROUPS)


def _template_pieces(tokenizer: Any) -> list[_TemplatePiece]:
    """The template's pieces, the longest first, because one may begin with another."""
    # Empty contents, because no word is in the vocabulary of every tokenizer.
    messages = [{"role": role, "content": ""} for role in (*_SPEAKERS, *_SPEAKERS)]
    chat = chat_tokens(tokenizer, messages)
    places = {0: (_TEXT, _USER), 1: (_USER, _ASSISTANT), 2: (_ASSISTANT, _USER), 4: (_ASSISTANT, _TEXT)}
    pieces = [
        _TemplatePiece(chat.input_ids[chat.template & (chat.n_before == n_before)].tolist(), before, after)
        for n_before, (before, after) in places.items()
    ]
    return sorted((piece for piece in pieces if piece.ids), key=lambda piece: -len(piece.ids))


def _packed_labels(row: list[int], pieces: Sequence[_TemplatePiece], bos_id: int | None) -> list[int]:
    labels: list[int] = []
    speaker, is_known = _TEXT, False
    while len(labels) < len(row):
        rest = row[len(labels) :]
        # The end of the row may cut a piece short.
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
