"""Replacements for control tokens that only the chat model knows: the tokens that the base model reads instead."""

from collections.abc import Mapping
from typing import Any, Final

import torch
from jaxtyping import Int
from torch import Tensor, nn

from sae_lens_crosscoder.models.adapters import AdapterView, is_reading

TOKEN_REPLACEMENTS: Final[Mapping[str, Mapping[str, str]]] = {
    # Gemma 2's base model has <start_of_turn> and <end_of_turn> in its vocabulary, and the paper feeds it both.
    "gemma-2": {},
    # In these families the base model's vocabulary has the control tokens, but training never saw them: their
    # embeddings are as initialised, and activations there say nothing about the base model.
    "llama-3": {"<|start_header_id|>": "<", "<|end_header_id|>": ">", "<|eot_id|>": "<|end_of_text|>"},
    "qwen-2.5": {"<|im_start|>": "<", "<|im_end|>": "<|endoftext|>"},
}
"""By model family, the chat model's control tokens and what the base model may read instead; pass one as
`token_replacements`. Our choice, by what stands in a similar place in text: the paper replaces nothing."""


def replacement_ids(replacements: Mapping[str, str], base_tokenizer: Any, chat_tokenizer: Any) -> dict[int, int]:
    """Token ids of the chat model, and the ids that the base model reads instead.

    Args:
        replacements: tokens as the vocabularies write them, such as those of `TOKEN_REPLACEMENTS["qwen-2.5"]`.

    Raises:
        ValueError: for a token that is missing in its model's vocabulary, or whose replacement is itself replaced.
    """
    if not replacements:
        return {}
    if base_tokenizer is None or chat_tokenizer is None:
        raise ValueError("token_replacements are checked against both tokenizers. Pass models that have one.")
    vocabularies = {"chat": chat_tokenizer.get_vocab(), "base": base_tokenizer.get_vocab()}

    def id_of(token: str, model: str) -> int:
        if token not in vocabularies[model]:
            raise ValueError(
                f"token_replacements: {token!r} is not in the {model} model's vocabulary. Map control tokens of the "
                "chat model to tokens of the base model, written as the vocabularies write them."
            )
        return int(vocabularies[model][token])

    for token, replacement in replacements.items():
        if replacement in replacements:
            raise ValueError(f"token_replacements: {token!r} becomes {replacement!r}, which is itself replaced.")
    return {id_of(token, "chat"): id_of(replacement, "base") for token, replacement in replacements.items()}


def replace_embedded_tokens(model: nn.Module, ids: Mapping[int, int]) -> None:
    """Make a model embed other tokens in place of the given ones, permanently; idempotent.

    The replacement happens at the embedding, which every forward pass goes through. The rest of the model, such as its
    loss, still sees the original ids.
    """
    if not ids:
        return
    old, new = torch.tensor(list(ids)), torch.tensor(list(ids.values()))

    if isinstance(model, AdapterView):
        model.shared.replaces_tokens = True

    def replace(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (_replaced(args[0], old, new), *args[1:]) if is_reading(model) else args

    _embedding_of(model).register_forward_pre_hook(replace)


def validate_embedded(pair: Any, tokens: Int[Tensor, "batch pos"]) -> None:
    """Raise a ValueError for a token id that a model of a pair has no embedding of.

    Models with a tokenizer of their own read other ids.
    """
    models, replaced = pair.members, pair.replaced_ids
    for m, model in enumerate(models):
        if pair.alignments[m] is not None:
            continue
        validate_ids_of(model, f"model {m} of the pair", tokens, replaced if m < len(models) - 1 else {})


def validate_ids_of(model: Any, name: str, tokens: Int[Tensor, "batch pos"], replaced: Mapping[int, int]) -> None:
    """Raise a ValueError for a token id that one model neither has an embedding of nor reads as another token."""
    d_vocab = next(_embedding_of(model).parameters()).shape[0]
    unknown = set(tokens[tokens >= d_vocab].unique().tolist()) - set(replaced)
    if unknown:
        raise ValueError(
            f"tokens contains the id {min(unknown)}, but {name} has only {d_vocab} embeddings. Use tokens that all "
            "models have, or map control tokens that only the chat model has with token_replacements."
        )


def _replaced(tokens: Int[Tensor, "*batch"], old: Int[Tensor, " id"], new: Int[Tensor, " id"]) -> Int[Tensor, "*batch"]:
    matches = tokens[..., None] == old.to(tokens.device)
    replacement = new.to(tokens.device)[matches.int().argmax(dim=-1)]
    return torch.where(matches.any(dim=-1), replacement.to(tokens.dtype), tokens)


def _embedding_of(model: Any) -> nn.Module:
    """The module that turns token ids into vectors."""
    return model.embed if hasattr(model, "embed") else model.model.get_input_embeddings()
