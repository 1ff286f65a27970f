"""Every token's group: beginning of sequence, a place in the chat template, or whose words they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.data.chat_tokens import ChatTokens

BOS_GROUP: Final = "bos"
TEMPLATE_GROUP: Final = "template"
LEFT_OUT: Final = -1
_SPEAKERS = ("user", "assistant")

By = Literal["role", "token", "place"]


@dataclass(frozen=True)
class TokenGroups:
    """A group for every token of a batch of contexts.

    >>> groups = TokenGroups(torch.tensor([[0, 1, 1]]), ("bos", "user"))
    >>> groups.drop_first_n(2).labels
    tensor([[-1, -1,  1]])
    """

    labels: Int[Tensor, "batch pos"]
    """Index into `names`; -1 for tokens that are left out of everything, such as padding."""
    names: tuple[str, ...]
    """`bos` is what `frac_template` leaves out; `template`, alone or as the first word, is what it counts."""

    def __post_init__(self) -> None:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names={self.names} holds a name twice, so its columns could not be told apart.")
        low, high = (LEFT_OUT, LEFT_OUT) if self.labels.numel() == 0 else map(int, self.labels.aminmax())
        if low < LEFT_OUT or high >= len(self.names):
            raise ValueError(
                f"labels reach from {low} to {high}, but there are {len(self.names)} names: a label is an index into "
                "names, or -1 for a token that is left out."
            )

    def drop_first_n(self, n: int) -> "TokenGroups":
        """The same without the first n tokens of every context, whose activations can be huge."""
        if n < 0:
            raise ValueError(f"n={n} must be 0 or more: it is how many tokens of every context are left out.")
        labels = self.labels.clone()
        labels[:, :n] = LEFT_OUT
        return replace(self, labels=labels)

    @property
    def is_template(self) -> tuple[bool, ...]:
        """Which groups are the template's, whole or in places."""
        return tuple(name.split(" ")[0] == TEMPLATE_GROUP for name in self.names)


def token_groups(chats: Sequence[ChatTokens], tokenizer: Any, by: By = "role") -> TokenGroups:
    r"""The groups of conversations: `bos`, the template's, `user`, `assistant`, and `other` for further roles.

    Rows are as long as the longest conversation; what is behind a shorter one is left out. Their tokens are
    `torch.nn.utils.rnn.pad_sequence([chat.input_ids for chat in chats], batch_first=True)`.

    Args:
        tokenizer: the one that `chat_tokens` was given, for the names of template tokens.
        by: how the template is split: not at all (`role`), by `token`, such as `template '<end_of_turn>'`, or by
            `place`: between whose words, the how-manieth and which token, such as
            `template user>assistant 2 '<start_of_turn>'`. The outer ends of a conversation are `start` and `end`.
    """
    if by not in get_args(By):
        raise ValueError(f"by={by!r} is not one of {get_args(By)}.")
    if not chats:
        raise ValueError("There are no conversations to group: give the results of chat_tokens.")
    rows = [_names(chat, tokenizer, by) for chat in chats]
    names = sorted({name for row in rows for name in row})
    index = {name: i for i, name in enumerate(names)}
    labels = [torch.tensor([index[name] for name in row]) for row in rows]
    return TokenGroups(pad_sequence(labels, batch_first=True, padding_value=LEFT_OUT), tuple(names))


def _names(chat: ChatTokens, tokenizer: Any, by: By) -> list[str]:
    """The name of each token's group."""
    names: list[str] = []
    seen: dict[int, int] = {}  # template tokens so far, by the number of contents before them
    edges = ("start", *chat.message_roles, "end")
    columns = (chat.input_ids, chat.message, chat.n_before, chat.bos, chat.template)
    for token, message, n_before, bos, template in zip(*(column.tolist() for column in columns), strict=True):
        if bos:
            names.append(BOS_GROUP)
        elif not template:
            role = chat.message_roles[message]
            names.append(role if role in _SPEAKERS else "other")
        else:
            text, place = repr(tokenizer.decode([token])), seen.get(n_before, 0)
            seen[n_before] = place + 1
            between = f"{edges[n_before]}>{edges[n_before + 1]}"
            endings = {"role": "", "token": f" {text}", "place": f" {between} {place} {text}"}
            names.append(TEMPLATE_GROUP + endings[by])
    return names
