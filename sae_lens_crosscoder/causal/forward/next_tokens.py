"""Both models' next-token predictions side by side, unpatched and under patches."""

from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import validate_tokens
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.forward.prompt import Prompt, prompt_tokens
from sae_lens_crosscoder.data.token_mask import validate_padding
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.outputs import over_common_ids
from sae_lens_crosscoder.models.pair import HookedModelPair


@validate_arguments
@torch.no_grad()
def next_tokens(pair: HookedModelPair, tokens: Prompt, k: int = 10, *, position: int = -1) -> pd.DataFrame:
    """Tabulate the most likely next tokens of both models with their probabilities.

    Args:
        tokens: one prompt: messages, which get the chat template; a text, which does not; or token ids.
        k: the table has each column's k most likely tokens.
        position: the position whose next token is predicted.

    Returns:
        A row per token (by id; `token` is its text), the chat model's most likely first, with probabilities in `base`
        and `chat`. Inside `with patched(pair, ...)` these are the unpatched models, and `base_patched` and
        `chat_patched` the patched ones.
    """
    tokens = prompt_tokens(pair, tokens)
    if k < 1:
        raise ValueError(f"k={k} selects no token: pass at least 1.")
    n = tokens.shape[1]
    if not -n <= position < n:
        raise ValueError(f"position={position} is outside the prompt of {n} tokens: expected {-n} to {n - 1}.")
    columns = {name: logits[position].softmax(dim=-1) for name, logits in _logits(pair, tokens).items()}
    table = pd.DataFrame({name: column.tolist() for name, column in columns.items()})
    top = sorted({int(i) for column in columns.values() for i in column.topk(min(k, len(column))).indices})
    table = table.loc[top].sort_values("chat", ascending=False, kind="stable")
    table.insert(0, "token", token_texts(pair, table.index.tolist()))
    table.index.name = "token_id"
    return table


@validate_arguments
@torch.no_grad()
def token_kl(pair: HookedModelPair, tokens: Prompt) -> pd.DataFrame:
    """Tabulate the KL between the models' predictions after every token of a prompt, in nats.

    Args:
        tokens: one prompt, as for `next_tokens`.

    Returns:
        A row per position, with the token there. `chat_from_base` is `KL(p_chat || p_base)`. Inside `with patched(pair,
        ...)`, `base_from_patched` and `chat_from_patched` are `KL(p || p_patched)` of each model, and
        `chat_from_patched_base` is the part of `chat_from_base` that is left under the base model's patch.
    """
    tokens = prompt_tokens(pair, tokens)
    logs = {name: log_probs(logits) for name, logits in _logits(pair, tokens).items()}
    columns = {"chat_from_base": kl_divergence(logs["chat"], logs["base"])}
    if "base_patched" in logs:
        columns["base_from_patched"] = kl_divergence(logs["base"], logs["base_patched"])
        columns["chat_from_patched"] = kl_divergence(logs["chat"], logs["chat_patched"])
        columns["chat_from_patched_base"] = kl_divergence(logs["chat"], logs["base_patched"])
    table = pd.DataFrame({name: column.tolist() for name, column in columns.items()})
    table.insert(0, "token", token_texts(pair, tokens[0].tolist()))
    table.index.name = "position"
    return table


@validate_arguments
@torch.no_grad()
def kl_between_models(
    pair: HookedModelPair, tokens: Int[Tensor, "prompt pos"], *, batch_size: int = 8
) -> Float[Tensor, "prompt pos"]:
    """`KL(p_chat || p_base)` in nats after every token of every prompt: `token_kl`'s `chat_from_base` for batches."""
    pair.validate_two("kl_between_models")
    validate_tokens(tokens)
    validate_padding(tokens, None, pair.tokenizer)
    kl: list[Tensor] = []
    for batch in tqdm(tokens.split(batch_size), desc="KL", unit="batch", leave=False):
        logits = [model(batch.to(device_of(model))).float().cpu() for model in (pair.base, pair.chat)]
        base, chat = map(log_probs, over_common_ids(*logits))
        kl.append(kl_divergence(chat, base))
    return torch.cat(kl)


def token_texts(pair: HookedModelPair, token_ids: list[int]) -> list[str]:
    """Each token's text, or its id if the pair has no tokenizer."""
    if pair.tokenizer is None:
        return [str(token_id) for token_id in token_ids]
    return [pair.tokenizer.decode([token_id]) for token_id in token_ids]


def _logits(pair: HookedModelPair, tokens: Tensor) -> dict[str, Float[Tensor, "pos d_vocab"]]:
    """Both models' logits over their common ids, without the pair's hooks, and with them if it has any."""
    pair.validate_two("The comparison of predictions")
    outputs: list[Any] = [model(tokens.to(device_of(model)))[0].float().cpu() for model in (pair.base, pair.chat)]
    base, chat = over_common_ids(*outputs)
    logits = {"base": base, "chat": chat}
    if any(hook_point.has_hooks(dir="fwd") for hook_point in pair.hook_dict.values()):
        edited = pair(tokens)[0].float().cpu()
        logits |= {"base_patched": edited[:, 0], "chat_patched": edited[:, -1]}
    return logits
