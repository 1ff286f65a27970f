"""Answered conversations: the chat model's own answers to prompts, or given ones, with masks of their tokens."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm
from transformer_lens import HookedTransformer
from transformer_lens.model_bridge import TransformerBridge

from sae_lens_crosscoder.data.chat_tokens import ChatTokens, chat_tokens
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.pair import HookedModelPair

Messages = Sequence[dict[str, str]]


@dataclass(frozen=True)
class Responses:
    """Answered conversations, padded on the right: what `causal_effects` takes."""

    tokens: Int[Tensor, "conversation pos"]
    response: Bool[Tensor, "conversation pos"]
    """The answers, each with the token that ends its turn, unless it was cut off."""
    template: Bool[Tensor, "conversation pos"]
    """The template's tokens, as `ChatTokens.template` marks them; an answer's end of turn is one of them."""


def given_responses(pair: HookedModelPair, conversations: Sequence[Messages]) -> Responses:
    """Conversations as they are, whoever wrote the answers, with masks of the assistant's tokens.

    Args:
        conversations: messages (`role`, `content`), with one of the assistant's at least; the chat template is applied.

    Raises:
        ValueError: for no conversations, a tokenizer without a chat template, a conversation without an answer, or
            one that is longer than what the chat model reads.
    """
    _refuse_nothing(conversations)
    for messages in conversations:
        if all(message["role"] != "assistant" for message in messages):
            raise ValueError(f"A conversation has no answer to score: {messages}. Leave it out, or generate answers.")
    chats = [chat_tokens(pair.tokenizer, messages) for messages in conversations]
    _refuse_long(chats, 0, int(pair.chat.cfg.n_ctx))
    columns = ([getattr(chat, name) for chat in chats] for name in ("input_ids", "response", "template"))
    return Responses(*[pad_sequence(column, batch_first=True) for column in columns])


@torch.no_grad()
def generate_responses(
    pair: HookedModelPair, conversations: Sequence[Messages], *, max_new_tokens: int = 64, batch_size: int = 32
) -> Responses:
    """The chat model's most likely answer to every conversation, word by word, with masks of its tokens.

    The host generates, with its cache of keys and values. Only prompts of one length are batched together: then there
    is no padding while it generates, and an answer does not depend on the prompts beside it.

    Args:
        conversations: messages (`role`, `content`), the last one the user's; the chat template is applied.
        max_new_tokens: where an answer that does not end is cut off.

    Raises:
        ValueError: for no conversations, a tokenizer without a chat template or an end of turn, models that cannot
            generate, or prompts that leave no room for the answer.
    """
    model, tokenizer = pair.chat, pair.tokenizer
    _refuse_nothing(conversations)
    if not isinstance(model, HookedTransformer | TransformerBridge):
        raise ValueError(
            f"A {type(model).__name__} does not generate: load the models with model_class_name='HookedTransformer' "
            "or 'TransformerBridge'."
        )
    prompts = [chat_tokens(tokenizer, messages, add_generation_prompt=True) for messages in conversations]
    ends = _ends_of_turn(tokenizer, conversations[0])
    _refuse_long(prompts, max_new_tokens, int(model.cfg.n_ctx))
    lengths = torch.tensor([len(prompt.input_ids) for prompt in prompts])
    answers: dict[int, Tensor] = {}
    with tqdm(total=len(prompts), desc="Answering", unit="prompt", leave=False) as bar:
        for length in lengths.unique():
            for rows in (lengths == length).nonzero().flatten().split(batch_size):
                ids = torch.stack([prompts[row].input_ids for row in rows.tolist()])
                written = _generate(model, ids, ends, max_new_tokens)
                answers.update(zip(rows.tolist(), written, strict=True))
                bar.update(len(rows))
    return _as_responses(prompts, [answers[row] for row in range(len(prompts))], ends)


def _generate(model: Any, prompts: Tensor, ends: Sequence[int], max_new_tokens: int) -> list[Tensor]:
    """Each prompt's answer, up to and including the first token that ends a turn."""
    written = model.generate(
        prompts.to(device_of(model)),
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        do_sample=False,
        prepend_bos=False,
        return_type="tokens",
        verbose=False,
    )
    return [_to_the_end(answer, ends) for answer in written[:, prompts.shape[1] :].cpu()]


def _to_the_end(answer: Int[Tensor, " pos"], ends: Sequence[int]) -> Int[Tensor, " _"]:
    over = torch.isin(answer, torch.tensor(list(ends), dtype=answer.dtype)).nonzero().flatten()
    return answer if len(over) == 0 else answer[: int(over[0]) + 1]


def _as_responses(prompts: Sequence[ChatTokens], answers: Sequence[Tensor], ends: Sequence[int]) -> Responses:
    shape = (len(prompts), max(len(p.input_ids) + len(a) for p, a in zip(prompts, answers, strict=True)))
    tokens = torch.full(shape, ends[0])
    response, template = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start, stop = len(prompt.input_ids), len(prompt.input_ids) + len(answer)
        tokens[row, :start], tokens[row, start:stop] = prompt.input_ids, answer
        response[row, start:stop] = True
        template[row, :start] = prompt.template
        template[row, start:stop] = torch.isin(answer, torch.tensor(list(ends)))
    return Responses(tokens, response, template)


def _ends_of_turn(tokenizer: Any, conversation: Messages) -> list[int]:
    """What the template writes after an answer, and the tokenizer's own end of text."""
    # The answer repeats the user's words, because these are sure to be in the vocabulary.
    answered = chat_tokens(tokenizer, [*conversation, {"role": "assistant", "content": conversation[-1]["content"]}])
    closing = answered.input_ids[answered.response & answered.template][-1:].tolist()
    ends = dict.fromkeys([*closing, tokenizer.eos_token_id])
    ends.pop(None, None)
    if not ends:
        raise ValueError(
            "Neither the chat template nor the tokenizer has a token that ends a turn, so answers would not end: set "
            "tokenizer.eos_token."
        )
    return list(ends)


def _refuse_nothing(conversations: Sequence[Messages]) -> None:
    if not conversations:
        raise ValueError("conversations is empty, so there is nothing to answer: give at least one.")


def _refuse_long(chats: Sequence[ChatTokens], max_new_tokens: int, n_ctx: int) -> None:
    longest = max(len(chat.input_ids) for chat in chats)
    if longest + max_new_tokens > n_ctx:
        room = f" and max_new_tokens={max_new_tokens}" if max_new_tokens else ""
        raise ValueError(
            f"The longest conversation has {longest} tokens{room}, but the chat model reads only {n_ctx}: leave out "
            f"long ones{', or lower max_new_tokens' if max_new_tokens else ''}."
        )
