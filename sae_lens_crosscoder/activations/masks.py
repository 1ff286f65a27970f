"""Which token of a conversation is the template's and which is whose, from the tokenizer's own chat template."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

TEMPLATE = -1


@dataclass(frozen=True)
class ChatTokens:
    """A conversation as the chat model reads it, with the origin of every token."""

    input_ids: Int[Tensor, " pos"]
    message: Int[Tensor, " pos"]
    """Index of the message whose content the token is part of; -1 for tokens that the template adds."""
    message_roles: tuple[str, ...]
    """Role of every message, such as ("user", "assistant")."""
    bos: Bool[Tensor, " pos"]
    """The beginning-of-sequence token, which is counted neither as template nor as content."""

    @property
    def template(self) -> Bool[Tensor, " pos"]:
        """Tokens that the template adds, turn markers and role names, without BOS."""
        return (self.message == TEMPLATE) & ~self.bos

    def role(self, name: str) -> Bool[Tensor, " pos"]:
        """Tokens of the contents of all messages with this role."""
        indices = [index for index, role in enumerate(self.message_roles) if role == name]
        return torch.isin(self.message, torch.tensor(indices, dtype=self.message.dtype))


def chat_tokens(tokenizer: Any, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False) -> ChatTokens:
    """Tokenize a conversation with its chat template and say where every token comes from.

    Works for any template that writes the contents of the messages unchanged (but for white space at their ends), by
    rendering the template once more around marks in place of the contents.

    Args:
        tokenizer: a fast Hugging Face tokenizer with a `chat_template`.
        messages: dicts with `role` and `content`.

    Raises:
        ValueError: without a chat template, or when the template rewrites contents.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("This tokenizer has no chat template: load the chat model's tokenizer, or set one.")
    marks = [f"\ue000{index}\ue001" for index in range(len(messages))]
    marked = [{**message, "content": mark} for message, mark in zip(messages, marks, strict=True)]
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    around: str = tokenizer.apply_chat_template(marked, **options)
    text: str = tokenizer.apply_chat_template(list(messages), **options)
    spans = _content_spans(text, around, marks, [message["content"] for message in messages])
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    owners = [_owner(start, end, spans) for start, end in encoded["offset_mapping"]]
    roles = tuple(message["role"] for message in messages)
    bos_id = tokenizer.bos_token_id
    bos = ids == bos_id if bos_id is not None else torch.zeros_like(ids, dtype=torch.bool)
    return ChatTokens(ids, torch.tensor(owners), roles, bos)


def _content_spans(text: str, around: str, marks: Sequence[str], contents: Sequence[str]) -> list[tuple[int, int]]:
    """Where each content stands in the rendered text."""
    spans: list[tuple[int, int]] = []
    rest, position = around, 0
    for mark, content in zip(marks, contents, strict=True):
        before, found, rest = rest.partition(mark)
        position += len(before)
        written = content if text[position:].startswith(content) else content.strip()
        if not found or not text[:position].endswith(before) or not text[position:].startswith(written):
            raise ValueError(
                f"The chat template does not write the message {content[:40]!r} unchanged, so its tokens cannot be "
                "told from the template's own. Use a template without hidden or rewritten contents."
            )
        spans.append((position, position + len(written)))
        position += len(written)
    if text[position:] != rest:
        raise ValueError("The chat template's text after the last message depends on the contents; cannot tell tokens.")
    return spans


def _owner(start: int, end: int, spans: Sequence[tuple[int, int]]) -> int:
    """The content that a token's characters reach into; a token that straddles a border belongs to the content."""
    for index, (content_start, content_end) in enumerate(spans):
        if start < content_end and end > content_start:
            return index
    return TEMPLATE
