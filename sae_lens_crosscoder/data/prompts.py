"""Prompts: requests and conversations from files, tokenized so that each ends where the answer's first token is due."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.chat_tokens import chat_tokens, validate_tokenizer
from sae_lens_crosscoder.data.conversations import COLUMNS, messages_of
from sae_lens_crosscoder.data.mix import MixSource
from sae_lens_crosscoder.data.token_groups import BOS_GROUP, EXCLUDED, TEXT_GROUP, TokenGroups, token_groups

Messages = Sequence[Mapping[str, str]]
_REQUEST_KEYS = ("prompt", "text")


class TokenizedPrompts(NamedTuple):
    """Prompts padded on the right."""

    tokens: Int[Tensor, "prompt pos"]
    token_mask: Bool[Tensor, "prompt pos"]
    """False for padding. A row's last True is the position that predicts the answer's first token."""
    groups: TokenGroups


@validate_arguments
def load_prompts(path: str | Path) -> list[list[dict[str, Any]]]:
    """Read requests or conversations from a file.

    Args:
        path: `.jsonl` with one prompt per line, `.json` with a list of prompts or an object of such lists, or any other
            text file with one request of the user per line. A prompt in JSON is a text, a list of messages, or an
            object with `messages`, `conversations` (ShareGPT's form too), `prompt` or `text`.

    Raises:
        ValueError: naming the file, if it has no prompts, or one that cannot be read.
    """
    path = Path(path)
    text = path.read_text(encoding="utf-8")
    try:
        records = _records(text, path.suffix)
        prompts = [_messages(record, MixSource(str(path))) for record in records]
    except ValueError as error:
        raise ValueError(f"{path} has a prompt that cannot be read: {error!s:.200}") from error
    prompts = [messages for messages in prompts if messages]
    if not prompts:
        raise ValueError(f"{path} has no prompts. Write one request per line, or JSON with one conversation per line.")
    return prompts


def _records(text: str, suffix: str) -> list[Any]:
    if suffix == ".json":
        document: Any = json.loads(text)
        lists = [part for part in document.values() if isinstance(part, list)] if isinstance(document, dict) else []
        return [record for part in lists for record in part] if isinstance(document, dict) else list(document)
    lines = [line for line in text.splitlines() if line.strip()]
    return [json.loads(line) for line in lines] if suffix == ".jsonl" else [line.strip() for line in lines]


def _messages(record: Any, source: MixSource) -> list[dict[str, Any]]:
    if isinstance(record, Mapping):
        keys = [key for key in (*COLUMNS, *_REQUEST_KEYS) if key in record]
        if not keys:
            raise ValueError(f"it has none of the keys {', '.join((*COLUMNS, *_REQUEST_KEYS))}")
        record = record[keys[0]]
    if not isinstance(record, str | list):
        raise ValueError(f"expected a text or a list of messages, got a {type(record).__name__}")
    return messages_of(record, source)  # pyright: ignore[reportUnknownArgumentType]


@validate_arguments
def tokenize_prompts(prompts: Sequence[str | Messages], tokenizer: Any) -> TokenizedPrompts:
    """Tokenize requests with the chat template, up to where the assistant's answer begins.

    Args:
        prompts: texts, each a request of the user, or conversations, of which everything after the user's last message
            is left out. Texts stand as they are, after the beginning-of-sequence token, if the tokenizer has no chat
            template.

    Raises:
        ValueError: for no prompts, a conversation without a message of the user, or conversations for a tokenizer
            without a chat template.
    """
    if len(prompts) == 0:
        raise ValueError("`prompts` is empty: pass at least one request or conversation.")
    validate_tokenizer(tokenizer)
    if getattr(tokenizer, "chat_template", None) is None:
        rows, names = [_plain_ids(prompt, tokenizer) for prompt in prompts], (BOS_GROUP, TEXT_GROUP)
        labels = [(row != tokenizer.bos_token_id).long() for row in rows]
        groups = TokenGroups(pad_sequence(labels, batch_first=True, padding_value=EXCLUDED), names)
    else:
        chats = [chat_tokens(tokenizer, request_of(prompt), add_generation_prompt=True) for prompt in prompts]
        rows, groups = [chat.input_ids for chat in chats], token_groups(chats, tokenizer)
    lengths = torch.tensor([len(row) for row in rows])
    padding = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
    tokens = pad_sequence(rows, batch_first=True, padding_value=padding)
    return TokenizedPrompts(tokens, torch.arange(tokens.shape[1]) < lengths[:, None], groups)


def request_of(prompt: str | Messages) -> list[dict[str, str]]:
    """The messages up to the user's last one.

    Raises:
        ValueError: for a conversation without a message of the user.
    """
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(m) for m in prompt]
    last = max((i for i, message in enumerate(messages) if message["role"] == "user"), default=None)
    if last is None:
        raise ValueError(f"A conversation has no message of the user: {messages!r:.100}. Leave it out.")
    return messages[: last + 1]


def _plain_ids(prompt: str | Messages, tokenizer: Any) -> Int[Tensor, " pos"]:
    if not isinstance(prompt, str):
        messages = request_of(prompt)
        if len(messages) > 1:
            raise ValueError("The tokenizer has no chat template. Pass texts, or load the chat model's tokenizer.")
        prompt = messages[0]["content"]
    ids: list[int] = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    return torch.tensor([*start, *ids])
