"""What both models expect next, side by side, as they are and under patches."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.pair import HookedModelPair


@torch.no_grad()
def next_tokens(
    pair: HookedModelPair, tokens: Int[Tensor, "1 pos"], k: int = 10, *, position: int = -1
) -> pd.DataFrame:
    """The most likely next tokens of both models, with their probabilities.

    Args:
        tokens: one prompt.
        k: every column's k most likely tokens are rows.
        position: after which token.

    Returns:
        A row per token (by id; `token` is its text), the chat model's most likely first, with the probabilities in
        `base` and `chat`; inside `with patched(pair, ...)` these are the models as they are, and `base_patched` and
        `chat_patched` those with the patches.
    """
    _refuse_several(tokens)
    if k < 1:
        raise ValueError(f"k={k} asks for no token: give at least 1.")
    columns = {name: logits[position].softmax(dim=-1) for name, logits in _logits(pair, tokens).items()}
    table = pd.DataFrame({name: column.tolist() for name, column in columns.items()})
    top = sorted({int(i) for column in columns.values() for i in column.topk(min(k, len(column))).indices})
    table = table.loc[top].sort_values("chat", ascending=False, kind="stable")
    table.insert(0, "token", _texts(pair, table.index.tolist()))
    table.index.name = "token_id"
    return table


@torch.no_grad()
def token_kl(pair: HookedModelPair, tokens: Int[Tensor, "1 pos"]) -> pd.DataFrame:
    """How far the models' expectations are apart after every token of a prompt, in nats.

    Returns:
        A row per position, with the token there. `chat_from_base` is `KL(p_chat || p_base)`; inside `with patched(pair,
        ...)`, `base_from_patched` and `chat_from_patched` are `KL(p || p_patched)` of either model, and
        `chat_from_patched_base` is what the base model's patch leaves of `chat_from_base`.
    """
    _refuse_several(tokens)
    logs = {name: logits.log_softmax(dim=-1) for name, logits in _logits(pair, tokens).items()}
    columns = {"chat_from_base": _kl(logs["chat"], logs["base"])}
    if "base_patched" in logs:
        columns["base_from_patched"] = _kl(logs["base"], logs["base_patched"])
        columns["chat_from_patched"] = _kl(logs["chat"], logs["chat_patched"])
        columns["chat_from_patched_base"] = _kl(logs["chat"], logs["base_patched"])
    table = pd.DataFrame({name: column.tolist() for name, column in columns.items()})
    table.insert(0, "token", _texts(pair, tokens[0].tolist()))
    table.index.name = "position"
    return table


@torch.no_grad()
def kl_between_models(
    pair: HookedModelPair, tokens: Int[Tensor, "prompt pos"], *, batch_size: int = 8
) -> Float[Tensor, "prompt pos"]:
    """`KL(p_chat || p_base)` in nats, of what the models expect after every token of every prompt.

    It is `token_kl`'s `chat_from_base` for many prompts.
    """
    kl: list[Tensor] = []
    for some in tqdm(tokens.split(batch_size), desc="KL", unit="batch", leave=False):
        base, chat = (model(some.to(device_of(model))).float().cpu() for model in (pair.base, pair.chat))
        kl.append(_kl(chat.log_softmax(dim=-1), base.log_softmax(dim=-1)))
    return torch.cat(kl)


def _logits(pair: HookedModelPair, tokens: Tensor) -> dict[str, Float[Tensor, "pos d_vocab"]]:
    """Both models' own, and, while the pair has hooks, those under them: the models themselves know no hook of it."""
    own = {name: model(tokens.to(device_of(model)))[0] for name, model in (("base", pair.base), ("chat", pair.chat))}
    logits: dict[str, Any] = {name: value.float().cpu() for name, value in own.items()}
    if any(hook_point.has_hooks(dir="fwd") for hook_point in pair.hook_dict.values()):
        patched = pair(tokens)[0].float().cpu()
        logits |= {"base_patched": patched[:, 0], "chat_patched": patched[:, -1]}
    return logits


def _kl(
    log_p: Float[Tensor, "*batch pos d_vocab"], log_q: Float[Tensor, "*batch pos d_vocab"]
) -> Float[Tensor, "*batch pos"]:
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _texts(pair: HookedModelPair, ids: list[int]) -> list[str]:
    if pair.tokenizer is None:
        return [str(i) for i in ids]
    return [pair.tokenizer.decode([i]) for i in ids]


def _refuse_several(tokens: Tensor) -> None:
    if tokens.ndim != 2 or tokens.shape[0] != 1 or tokens.shape[1] == 0:
        raise ValueError(f"tokens must be one prompt, of shape (1, pos), not {tuple(tokens.shape)}: give tokens[[i]].")
