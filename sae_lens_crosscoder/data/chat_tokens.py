"""Chat tokens: for every token of a conversation, the message it belongs to, from the tokenizer's chat template."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments

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
    """True for the beginning-of-sequence token, which counts neither as template nor as content."""
    n_before: Int[Tensor, " pos"]
    """Number of messages whose contents end before the token, which tells the template's places apart."""

    @property
    def template(self) -> Bool[Tensor, " pos"]:
        """True for tokens that the template adds, turn markers and role names, without BOS."""
        return (self.message == TEMPLATE) & ~self.bos

    def role(self, name: str) -> Bool[Tensor, " pos"]:
        """True for tokens in the contents of messages with this role."""
        indices = [index for index, role in enumerate(self.message_roles) if role == name]
        return torch.isin(self.message, torch.tensor(indices, dtype=self.message.dtype))

    @property
    def response(self) -> Bool[Tensor, " pos"]:
        """True for the assistant's words: the contents of its messages, each with the token that ends the turn."""
        contents = self.role("assistant")
        return contents | (contents.roll(1) & self.template)


@validate_arguments
def chat_tokens(tokenizer: Any, messages: Sequence[dict[str, str]], add_generation_prompt: bool = False) -> ChatTokens:
    """Tokenize a conversation with its chat template and find the origin of every token.

    Renders the template a second time with marks in place of the contents, so it works for any template that writes the
    contents unchanged (except for white space at their ends).

    Args:
        tokenizer: a fast Hugging Face tokenizer with a `chat_template`.
        messages: dicts with `role` and `content`.

    Raises:
        ValueError: without a chat template, or if the template rewrites contents.
    """
    validate_tokenizer(tokenizer)
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("This tokenizer has no chat template. Load the chat model's tokenizer, or set one.")
    options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": add_generation_prompt}
    contents = [message["content"] for message in messages]
    marks = [f"\ue000{index}\ue001" for index in range(len(messages))]

    def render(contents: Sequence[str]) -> str:
        filled = [{**message, "content": content} for message, content in zip(messages, contents, strict=True)]
        return tokenizer.apply_chat_template(filled, **options)

    around, text = render(marks), render(contents)
    spans = _content_spans(text, around, marks, contents)
    if spans is None:
        raise ValueError(_rewritten(render, around, marks, contents))
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = torch.tensor(encoded["input_ids"])
    # Byte-level tokenizers trim a space from the start of a token's offsets, so that a lone space looks empty.
    offsets = [(start - 1 if start == end else start, end) for start, end in encoded["offset_mapping"]]
    message = torch.tensor([_message_at(start, end, spans) for start, end in offsets])
    n_before = [sum(content_end <= start for _, content_end in spans) for start, _ in offsets]
    roles = tuple(message["role"] for message in messages)
    bos_id = tokenizer.bos_token_id
    bos = (message == TEMPLATE) & (ids == bos_id) if bos_id is not None else torch.zeros_like(message, dtype=torch.bool)
    bos[1:] = False  # inside a conversation it is a turn marker, as <|im_start|> of ChatML models
    return ChatTokens(ids, message, roles, bos, torch.tensor(n_before))


def validate_tokenizer(tokenizer: Any) -> None:
    """Raise a ValueError for an object that neither reads nor writes tokens."""
    if tokenizer is None:
        raise ValueError("tokenizer is None, so there is no chat template. Load the models with their tokenizer.")
    if not callable(tokenizer) or not hasattr(tokenizer, "decode"):
        raise ValueError(
            f"tokenizer is a {type(tokenizer).__name__}, expected a Hugging Face tokenizer, such as pair.tokenizer."
        )


def end_of_turn_ids(tokenizer: Any, conversation: Sequence[dict[str, str]]) -> list[int]:
    """The token that the template writes after an answer, and the tokenizer's end-of-text token.

    Raises:
        ValueError: if there is neither.
    """
    # The answer repeats the user's words, because these are certain to be in the vocabulary.
    closed = chat_tokens(tokenizer, [*conversation, {"role": "assistant", "content": conversation[-1]["content"]}])
    closing = closed.input_ids[closed.response & closed.template][-1:].tolist()
    end_ids = dict.fromkeys([*closing, tokenizer.eos_token_id])
    end_ids.pop(None, None)
    if not end_ids:
        raise ValueError(
            "The chat template and the tokenizer have no end-of-turn token, so answers would not end: set "
            "tokenizer.eos_token."
        )
    return list(end_ids)


def _forms(content: str) -> tuple[str, ...]:
    """A content as it stands, and without white space at its ends, as many templates write it."""
    return (content, content.rstrip(), content.lstrip(), content.strip())


def _rewritten(
    render: Callable[[Sequence[str]], str], around: str, marks: Sequence[str], contents: Sequence[str]
) -> str:
    """Describe the message that the template rewrites: the one that changes more than its own place in the text."""
    for index, (mark, content) in enumerate(zip(marks, contents, strict=True)):
        alone = render([*marks[:index], content, *marks[index + 1 :]])
        if around.count(mark) != 1 or all(around.replace(mark, form) != alone for form in _forms(content)):
            return (
                f"The chat template does not write the message {content[:40]!r} unchanged, so its tokens cannot be "
                "told from the template's own. Leave out what it moves or drops, such as a thought, or use a template "
                "without hidden or rewritten contents."
            )
    return (
        "The chat template's text around the messages depends on several contents at once. Use a template that only "
        "adds fixed text, so that the contents' tokens can be told from its own."
    )


def _content_spans(
    text: str, around: str, marks: Sequence[str], contents: Sequence[str]
) -> list[tuple[int, int]] | None:
    """Start and end of each content in the rendered text; None if the template changes more than the contents."""
    pieces: list[str] = []
    for mark in marks:
        piece, _, around = around.partition(mark)
        pieces.append(piece)
    before, *after = [*pieces, around]
    spans: list[tuple[int, int]] = []
    position = len(before)
    for content, following in zip(contents, after, strict=True):
        written = next((form for form in _forms(content) if text[position:].startswith(form + following)), None)
        if written is None:
            return None
        spans.append((position, position + len(written)))
        position += len(written) + len(following)
    return spans if text.startswith(before) and position == len(text) else None


def _message_at(start: int, end: int, spans: Sequence[tuple[int, int]]) -> int:
    """Index of the content that overlaps a token's characters, even partly, or TEMPLATE."""
    for index, (content_start, content_end) in enumerate(spans):
        if start < content_end and end > content_start:
            return index
    return TEMPLATE
