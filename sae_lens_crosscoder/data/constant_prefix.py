"""The tokens with which all prompts of a set begin, such as a fixed system prompt."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lens_crosscoder.data.chat_tokens import chat_tokens


def constant_prefix(prompts: Sequence[Int[Tensor, "_"]]) -> Int[Tensor, " _"]:
    """The tokens with which all prompts begin, such as a fixed system prompt; none if all prompts are equal.

    Every model has the same activations there in every prompt, so they say nothing and count for much. The last token
    of a prompt is never one of them, because the answer is decided there.

    >>> constant_prefix([torch.tensor([1, 2, 7, 9]), torch.tensor([1, 2, 8, 9])])
    tensor([1, 2])
    """
    distinct = {tuple(prompt.tolist()) for prompt in prompts}
    n = 0
    if len(distinct) > 1:
        for column in zip(*(prompt[:-1] for prompt in distinct), strict=False):
            if len(set(column)) > 1:
                break
            n += 1
    return prompts[0][:n]


def template_prefix(tokenizer: Any) -> Int[Tensor, " _"]:
    """The tokens that the template writes before a user's first words, a fixed system prompt included."""
    chat = chat_tokens(tokenizer, [{"role": "user", "content": ""}])
    return chat.input_ids[chat.template & (chat.n_before == 0)]


def occurrences(tokens: Int[Tensor, "batch pos"], sequence: Int[Tensor, " length"]) -> Bool[Tensor, "batch pos"]:
    """True for tokens that are part of a sequence of ids, also where the start or the end of a row cuts it.

    >>> occurrences(torch.tensor([[2, 5, 1, 2, 5, 1]]), torch.tensor([1, 2])).int()
    tensor([[1, 0, 1, 1, 0, 1]], dtype=torch.int32)
    """
    found = torch.zeros_like(tokens, dtype=torch.bool)
    n_pos, length = tokens.shape[1], len(sequence)
    sequence = sequence.to(tokens)
    for start in range(1 - length, n_pos):
        inside = slice(max(start, 0), min(start + length, n_pos))
        part = sequence[inside.start - start : inside.stop - start]
        found[:, inside] |= (tokens[:, inside] == part).all(dim=1, keepdim=True)
    return found
