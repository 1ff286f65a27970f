"""Contrasts: two groups of prompts that differ in one thing, read at one position of each prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.arguments import validate_arguments

Prompt = Sequence[int] | Int[Tensor, " _"]
Chat = str | Sequence[dict[str, str]]


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """Two groups of prompts that differ in one thing, such as triggers of a behaviour and other prompts.

    `from_texts`, `from_chats` and `from_tokens` build it. Latents are chosen on the prompts that are not held out, and
    reported on those that are.

    Raises:
        ValueError: for fields that do not fit each other, or fewer than two prompts of a group in either part.
    """

    name: str
    tokens: Int[Tensor, "prompt pos"]
    """Token ids, padded on the right."""
    positions: Int[Tensor, " _"]
    """The decision position of each prompt: the token whose activation is read, usually the last."""
    positive: Bool[Tensor, " _"]
    """True for prompts with the concept."""
    held_out: Bool[Tensor, " _"]
    """True for prompts that nothing is chosen on."""
    model: str = "chat"
    """`base` or `chat`, the model that must have the concept: `base` for what fine-tuning removed."""
    kind_of_change: str | None = None
    """What fine-tuning did to the concept, if it is known: `chat_only`, `shared` or `base_only`."""

    def __post_init__(self) -> None:
        n = len(self.tokens)
        sizes = {name: len(getattr(self, name)) for name in ("positions", "positive", "held_out")}
        if any(size != n for size in sizes.values()):
            raise ValueError(f"Contrast {self.name!r} has {n} prompts, but {sizes}. Pass one entry per prompt.")
        if n and not 0 <= int(self.positions.min()) <= int(self.positions.max()) < self.tokens.shape[1]:
            raise ValueError(
                f"Contrast {self.name!r} has positions from {int(self.positions.min())} to {int(self.positions.max())}"
                f", but its prompts have {self.tokens.shape[1]} tokens. Count positions from 0."
            )
        if self.model not in ("base", "chat"):
            raise ValueError(f"model={self.model!r} must be 'base' or 'chat', the model that must have the concept.")
        validate_groups(self.name, self.positive, self.held_out)

    @classmethod
    @validate_arguments
    def from_tokens(
        cls,
        name: str,
        positive: Sequence[Prompt],
        negative: Sequence[Prompt],
        *,
        positions: Sequence[int] | None = None,
        held_out: Bool[Tensor, " prompt"] | None = None,
        model: str = "chat",
        kind_of_change: str | None = None,
        padding_id: int = 0,
    ) -> "Contrast":
        """Build a contrast from token ids, matched pairs or two groups of any sizes.

        Args:
            positive, negative: token ids of each prompt, of any lengths.
            positions: decision position of each prompt, the positive ones first; None for the last token.
            held_out: one entry per prompt, the positive ones first; None holds out the second half of each group.
            model, kind_of_change: see the class.
            padding_id: fills up shorter prompts on the right.

        >>> contrast = Contrast.from_tokens("refusal", [[5, 6], [5, 7], [5, 6], [5, 7]], [[5, 8, 9]] * 4)
        >>> contrast.positions.tolist(), contrast.held_out.tolist()
        ([1, 1, 1, 1, 2, 2, 2, 2], [False, False, True, True, False, False, True, True])
        """
        prompts = [torch.as_tensor(prompt, dtype=torch.int64) for prompt in (*positive, *negative)]
        if empty := [index for index, prompt in enumerate(prompts) if len(prompt) == 0]:
            raise ValueError(f"Contrast {name!r} has empty prompts: numbers {empty[:5]}. Leave them out.")
        is_positive = torch.arange(len(prompts)) < len(positive)
        held_out = second_halves(is_positive) if held_out is None else held_out
        validate_groups(name, is_positive, held_out)
        last = [len(prompt) - 1 for prompt in prompts]
        return cls(
            name=name,
            tokens=pad_sequence(prompts, batch_first=True, padding_value=padding_id),
            positions=torch.tensor(last if positions is None else list(positions), dtype=torch.int64),
            positive=is_positive,
            held_out=held_out,
            model=model,
            kind_of_change=kind_of_change,
        )

    @classmethod
    @validate_arguments
    def from_texts(
        cls, name: str, positive: Sequence[str], negative: Sequence[str], tokenizer: Any, **options: Any
    ) -> "Contrast":
        """Build a contrast from plain texts, with the special tokens that the tokenizer adds.

        Args:
            positive, negative: texts that end where the decision is made.
            options: as for `from_tokens`.
        """
        encode: Any = tokenizer
        if not callable(tokenizer):
            raise ValueError(f"tokenizer={tokenizer!r:.80} must be a tokenizer, such as that of the pair.")
        groups = [[encode(text)["input_ids"] for text in texts] for texts in (positive, negative)]
        return cls.from_tokens(name, *groups, **{"padding_id": _padding_id(tokenizer), **options})

    @classmethod
    @validate_arguments
    def from_chats(
        cls, name: str, positive: Sequence[Chat], negative: Sequence[Chat], tokenizer: Any, **options: Any
    ) -> "Contrast":
        """Build a contrast from conversations; each is read at the token that predicts the assistant's first one.

        Args:
            positive, negative: conversations as messages with `role` and `content`; a string is one user message.
            tokenizer: of the chat model. The template writes all special tokens, so none is added to them.
            options: as for `from_tokens`.

        Raises:
            ValueError: without a chat template.
        """
        groups = [[prompt_ids(tokenizer, chat) for chat in chats] for chats in (positive, negative)]
        return cls.from_tokens(name, *groups, **{"padding_id": _padding_id(tokenizer), **options})


def prompt_ids(tokenizer: Any, chat: Chat) -> list[int]:
    """Token ids of a conversation up to where the assistant's answer begins.

    Raises:
        ValueError: without a chat template.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("This tokenizer has no chat template. Load the chat model's tokenizer, or use from_texts.")
    messages = [{"role": "user", "content": chat}] if isinstance(chat, str) else list(chat)
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def second_halves(positive: Bool[Tensor, " prompt"]) -> Bool[Tensor, " prompt"]:
    """True for the second half of each group, in the order of the prompts.

    >>> second_halves(torch.tensor([True, False, True, False, False])).tolist()
    [False, False, True, True, True]
    """
    held_out = torch.zeros_like(positive)
    for group in (positive, ~positive):
        members = group.nonzero()[:, 0]
        held_out[members[len(members) // 2 :]] = True
    return held_out


def validate_groups(name: str, positive: Bool[Tensor, " prompt"], held_out: Bool[Tensor, " prompt"]) -> None:
    """Raise a ValueError unless both groups have at least two prompts to choose on and two held out."""
    parts = {
        f"{'positive' if is_positive else 'negative'} {'held out' if is_held else 'to choose on'}": int(
            ((positive == is_positive) & (held_out == is_held)).sum()
        )
        for is_positive in (True, False)
        for is_held in (False, True)
    }
    if min(parts.values()) < 2:
        raise ValueError(
            f"Contrast {name!r} has too few prompts: {parts}. Each part needs at least 2, so pass at least 4 of each "
            "group."
        )


def _padding_id(tokenizer: Any) -> int:
    padding = getattr(tokenizer, "pad_token_id", None)
    return 0 if padding is None else int(padding)
