"""What the base model reads in place of control tokens that only the chat model knows."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from torch import Tensor, nn

TOKEN_REPLACEMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    # Gemma 2's base model has <start_of_turn> and <end_of_turn> in its vocabulary, and the paper feeds it both.
    "gemma-2": {},
    # In these the base model's vocabulary has the control tokens, but nothing was learned about them: their embeddings
    # are as they were initialised, and activations there say nothing about the base model.
    "llama-3": {"<|start_header_id|>": "<", "<|end_header_id|>": ">", "<|eot_id|>": "<|end_of_text|>"},
    "qwen-2.5": {"<|im_start|>": "<", "<|im_end|>": "<|endoftext|>"},
}
"""By family of models, the chat model's control tokens and what the base model may read instead, to be given as
`token_replacements`. A choice of ours, by what stands in a similar place in text: the paper replaces nothing."""


def replacement_ids(replacements: Mapping[str, str], base_tokenizer: Any, chat_tokenizer: Any) -> dict[int, int]:
    """Token ids of the chat model, and what the base model reads instead.

    Args:
        replacements: tokens as the vocabularies write them, such as those of `TOKEN_REPLACEMENTS["qwen-2.5"]`.

    Raises:
        ValueError: for a token that is not in its model's vocabulary, or one that is replaced by a replaced one.
    """
    if not replacements:
        return {}
    if base_tokenizer is None or chat_tokenizer is None:
        raise ValueError("token_replacements are checked against both tokenizers: give models that have one.")
    vocabularies = {"chat": chat_tokenizer.get_vocab(), "base": base_tokenizer.get_vocab()}

    def id_of(token: str, model: str) -> int:
        if token not in vocabularies[model]:
            raise ValueError(
                f"token_replacements: {token!r} is not a token of the {model} model. Give tokens as the vocabulary "
                "writes them, control tokens of the chat model first and the base model's tokens for them second."
            )
        return int(vocabularies[model][token])

    for token, replacement in replacements.items():
        if replacement in replacements:
            raise ValueError(f"token_replacements: {token!r} becomes {replacement!r}, which is replaced itself.")
    return {id_of(token, "chat"): id_of(replacement, "base") for token, replacement in replacements.items()}


def replace_embedded_tokens(model: nn.Module, ids: Mapping[int, int]) -> None:
    """Make a model embed other tokens in place of some, whoever runs it; twice is the same as once.

    At the embedding, because everything that runs a model comes through it, and nothing else of the model, such as its
    loss, sees other ids than it was given.
    """
    if not ids:
        return
    old, new = torch.tensor(list(ids)), torch.tensor(list(ids.values()))

    def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_replaced(args[0], old, new), *args[1:])

    _embedding_of(model).register_forward_pre_hook(replace)


def _replaced(tokens: Tensor, old: Tensor, new: Tensor) -> Tensor:
    same = tokens[..., None] == old.to(tokens.device)
    replacement = new.to(tokens.device)[same.int().argmax(dim=-1)]
    return torch.where(same.any(dim=-1), replacement.to(tokens.dtype), tokens)


def _embedding_of(model: Any) -> nn.Module:
    """The module that turns token ids into vectors."""
    return model.embed if hasattr(model, "embed") else model.model.get_input_embeddings()
