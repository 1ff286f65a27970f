"""One prompt as token ids, from messages, a text or the ids themselves."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from sae_lens_crosscoder.activations.harvest import validate_tokens
from sae_lens_crosscoder.data.chat_tokens import chat_tokens
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import validate_embedded

Prompt = str | Sequence[Mapping[str, str]] | Int[Tensor, "1 pos"]
"""A text, messages (`role`, `content`), or one row of token ids."""


def prompt_tokens(pair: HookedModelPair, prompt: Prompt) -> Int[Tensor, "1 pos"]:
    """Token ids of one prompt.

    Args:
        prompt: messages, to which the chat template is applied, up to where the assistant answers if the last message
            is not the assistant's; a text, which gets BOS but no template; or one row of token ids, taken as it is.

    Raises:
        ValueError: for anything else, an empty prompt, or text without a tokenizer.
    """
    if isinstance(prompt, Tensor):
        return _validated_ids(pair, prompt)
    if pair.tokenizer is None:
        raise ValueError("prompt is a text or messages, but the pair has no tokenizer. Pass token ids (1, pos).")
    if isinstance(prompt, str):
        if getattr(pair.tokenizer, "chat_template", None) is not None:
            warnings.warn(
                "The prompt is a plain text, so no chat template is applied. Pass messages to apply it: "
                "[{'role': 'user', 'content': ...}].",
                stacklevel=4,
            )
        return _text_ids(pair.tokenizer, prompt)
    messages = [dict(message) for message in _validated_messages(prompt)]
    chat = chat_tokens(pair.tokenizer, messages, add_generation_prompt=messages[-1]["role"] != "assistant")
    return chat.input_ids[None]


def _text_ids(tokenizer: Any, text: str) -> Int[Tensor, "1 pos"]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    start = [] if tokenizer.bos_token_id is None or ids[:1] == [tokenizer.bos_token_id] else [tokenizer.bos_token_id]
    if not ids:
        raise ValueError(f"prompt={text!r} has no tokens: pass a text.")
    return torch.tensor([[*start, *ids]])


def _validated_messages(prompt: Any) -> Sequence[Mapping[str, str]]:
    is_messages = isinstance(prompt, Sequence) and all(
        isinstance(message, Mapping) and {"role", "content"} <= message.keys() for message in prompt
    )
    if not is_messages or not prompt:
        raise ValueError(
            f"prompt must be a text, messages with role and content, or token ids (1, pos), not {prompt!r:.60}."
        )
    return prompt


def _validated_ids(pair: HookedModelPair, tokens: Tensor) -> Int[Tensor, "1 pos"]:
    if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] == 0:
        raise ValueError(
            f"tokens must be one prompt of shape (1, pos), but its shape is {tuple(tokens.shape)}: pass tokens[[i]]."
        )
    validate_tokens(tokens)
    validate_embedded(pair, tokens)
    return tokens
