"""Answers: both models' own answers to prompts, as rows that both models read."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Final, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.data.chat_tokens import ChatTokens
from sae_lens_crosscoder.data.constant_prefix import constant_prefix
from sae_lens_crosscoder.data.token_groups import BOS_GROUP, EXCLUDED, TEMPLATE_GROUP, TokenGroups

Writer = Literal["base", "chat", "both"]
MODELS: Final[tuple[Writer, Writer]] = ("base", "chat")
WRITERS: Final[tuple[Writer, ...]] = (*MODELS, "both")

DECISION_GROUP: Final = f"{TEMPLATE_GROUP} decision"
_SPEAKERS = ("system", "user", "assistant")
ANSWER_GROUPS: Final = (
    BOS_GROUP,
    TEMPLATE_GROUP,
    *_SPEAKERS,
    "other",
    DECISION_GROUP,
    *(f"answer {writer}" for writer in WRITERS),
)


@dataclass(frozen=True)
class Answers:
    """Prompts with the models' own answers: a row per prompt and answer, padded on the right.

    Both models read every row, so each is also teacher-forced on what the other one wrote. A prompt that both models
    answer with the same tokens has one row, written by `both`.
    """

    tokens: Int[Tensor, "row pos"]
    lengths: Int[Tensor, " row"]
    """Tokens of each row; padding follows."""
    starts: Int[Tensor, " row"]
    """Position of the answer's first token in each row."""
    prompts: Int[Tensor, " row"]
    """Index of the row's prompt."""
    writers: tuple[Writer, ...]
    """Whose answer each row has."""
    ended: Bool[Tensor, " row"]
    """False for answers cut off at `max_new_tokens`."""
    groups: TokenGroups
    """Group of each token: `bos`, `template`, the speakers of the prompt, `template decision` for the prompt's last
    token, and `answer base`, `answer chat`, `answer both` by whose words follow. Padding has no group."""
    n_constant: int
    """Number of tokens with which all prompts begin, where no activation depends on the prompt."""

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def decisions(self) -> Int[Tensor, " row"]:
        """Position of each row's decision token, the prompt's last one, which predicts the answer's first token."""
        return self.starts - 1

    @cached_property
    def decision_rows(self) -> Int[Tensor, " prompt"]:
        """The first row of each prompt: up to the decision token, all rows of a prompt are equal."""
        prompts = self.prompts.tolist()
        return torch.tensor([row for row, prompt in enumerate(prompts) if prompt not in prompts[:row]])

    @property
    def is_decision(self) -> Bool[Tensor, "row pos"]:
        """True for the decision token of each row."""
        return self._positions == self.decisions[:, None]

    @property
    def is_answer(self) -> Bool[Tensor, "row pos"]:
        """True for the answers' tokens, the token that ends the turn included."""
        return (self._positions >= self.starts[:, None]) & (self._positions < self.lengths[:, None])

    @property
    def token_mask(self) -> Bool[Tensor, "row pos"]:
        """True for tokens of statistics: no padding, and not the prefix that all prompts share."""
        return (self._positions >= self.n_constant) & (self._positions < self.lengths[:, None])

    @property
    def _positions(self) -> Int[Tensor, "one pos"]:
        return torch.arange(self.tokens.shape[1])[None]


def join_answers(
    chats: Sequence[ChatTokens], answers: Mapping[Writer, Sequence[Int[Tensor, "_"]]], end_ids: Sequence[int]
) -> Answers:
    """Join prompts with the answers of each model.

    Args:
        chats: prompts, up to the decision token.
        answers: the tokens that `base` and `chat` wrote after each prompt.
        end_ids: tokens that end an answer; the first one fills rows up.
    """
    rows: list[Tensor] = []
    labels: list[Tensor] = []
    prompts: list[int] = []
    writers: list[Writer] = []
    ends = torch.tensor(list(end_ids))
    for i, chat in enumerate(chats):
        base, chat_answer = (answers[model][i] for model in MODELS)
        apart: list[tuple[Writer, Tensor]] = [("base", base), ("chat", chat_answer)]
        together: list[tuple[Writer, Tensor]] = [("both", base)]
        for writer, answer in together if torch.equal(base, chat_answer) else apart:
            rows.append(torch.cat([chat.input_ids, answer]))
            labels.append(torch.cat([_prompt_labels(chat), _answer_labels(answer, writer, ends)]))
            prompts.append(i)
            writers.append(writer)
    return Answers(
        tokens=pad_sequence(rows, batch_first=True, padding_value=end_ids[0]),
        lengths=torch.tensor([len(row) for row in rows]),
        starts=torch.tensor([len(chats[i].input_ids) for i in prompts]),
        prompts=torch.tensor(prompts),
        writers=tuple(writers),
        ended=torch.tensor([bool(torch.isin(row[-1], ends)) for row in rows]),
        groups=TokenGroups(pad_sequence(labels, batch_first=True, padding_value=EXCLUDED), ANSWER_GROUPS),
        n_constant=len(constant_prefix([chat.input_ids for chat in chats])),
    )


def _prompt_labels(chat: ChatTokens) -> Int[Tensor, " pos"]:
    labels = torch.full_like(chat.input_ids, ANSWER_GROUPS.index("other"))
    labels[chat.template] = ANSWER_GROUPS.index(TEMPLATE_GROUP)
    for role in _SPEAKERS:
        labels[chat.role(role)] = ANSWER_GROUPS.index(role)
    labels[chat.bos] = ANSWER_GROUPS.index(BOS_GROUP)
    labels[-1] = ANSWER_GROUPS.index(DECISION_GROUP)
    return labels


def _answer_labels(answer: Int[Tensor, " pos"], writer: Writer, ends: Tensor) -> Int[Tensor, " pos"]:
    is_end = torch.isin(answer, ends)
    return torch.where(is_end, ANSWER_GROUPS.index(TEMPLATE_GROUP), ANSWER_GROUPS.index(f"answer {writer}"))
