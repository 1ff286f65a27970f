"""What single latents do: their effect on the KL, on the next tokens, and what they write in the vocabulary."""

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.causal.effects import kl_to_chat
from sae_lens_crosscoder.causal.interventions import Intervention, intervention
from sae_lens_crosscoder.causal.resume import resume_from
from sae_lens_crosscoder.causal.setups import Setup
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name, require_inference
from sae_lens_crosscoder.models.hook_access import device_of
from sae_lens_crosscoder.models.pair import HookedModelPair


@torch.no_grad()
def latent_effects(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    tokens: Int[Tensor, "conversation pos"],
    response: Bool[Tensor, "conversation pos"],
    latents: Sequence[int],
    *,
    k: int = 5,
    batch_size: int = 8,
) -> pd.DataFrame:
    """What each latent by itself does to the chat model's later layers, and which tokens it speaks for.

    Args:
        tokens, response: answered conversations, as for `causal_effects`.
        latents: such as `table[table.verdict == "chat_specific"].index`.
        k: how many tokens are named.

    Returns:
        A row per latent. `kl_change_added` is how much `KL(p_chat || p_patched)` per token changes when the latent is
        added to the base model's activation (below 0: nearer to the chat model), `kl_change_removed` when it is removed
        from the chat model's, where it was 0. `n_active` counts the scored positions on which it is on; over
        these, `raises` and `lowers` name the tokens whose logits it changes most in the chat model, from highest
        and from lowest, as (text, mean change in logits against removing it). `writes` and `writes_against` are its
        direct logit attribution: what its decoder vector in the chat model comes to in the vocabulary, with the final
        norm's gain but before its division by the activation's size, as (text, logits per unit of activation).

    Raises:
        ValueError: as `causal_effects`, and for latents that do not exist or repeat.
    """
    crosscoder = require_inference(crosscoder, "latent_effects")
    latents = [int(j) for j in latents]
    intervention(crosscoder, latents, "ablate")  # refuses unknown latents before anything runs
    added = [intervention(crosscoder, [j], "add") for j in latents]
    removed = [intervention(crosscoder, [j], "ablate", model="chat") for j in latents]
    setups = [Setup("none")]
    setups += [Setup("added", "base", edit) for edit in added]
    setups += [Setup("removed", "chat", edit) for edit in removed]
    sums = kl_to_chat(pair, crosscoder, tokens, response, setups, batch_size=batch_size)
    none, *kl = (sums.totals[:, 0].sum(dim=-1) / sums.n_tokens[0].sum()).tolist()
    changes, n_active = _logit_changes(pair, crosscoder, tokens, response, removed, batch_size)
    direct = logit_attribution(pair.chat, crosscoder.decoders[-1].detach()[latents])
    rows: dict[int, dict[str, Any]] = {}
    for i, j in enumerate(latents):
        rows[j] = {
            "kl_change_added": kl[i] - none,
            "kl_change_removed": kl[len(latents) + i],
            "n_active": int(n_active[i]),
            "raises": _named(pair, changes[i], k) if n_active[i] else [],
            "lowers": _named(pair, -changes[i], k, sign=-1) if n_active[i] else [],
            "writes": _named(pair, direct[i], k),
            "writes_against": _named(pair, -direct[i], k, sign=-1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent")


@torch.no_grad()
def logit_attribution(model: Any, directions: Float[Tensor, "latent d_model"]) -> Float[Tensor, "latent d_vocab"]:
    """What directions of the residual stream come to in the vocabulary, seen through the final norm's gain.

    The norm's division by the residual stream's size is left out: it is the same for all tokens.

    Raises:
        ValueError: for a model of which no final norm and unembedding can be read.
    """
    if not hasattr(model, "ln_final") or not hasattr(model, "W_U"):
        raise ValueError(f"A {type(model).__name__} shows no ln_final and W_U: load it as 'HookedTransformer'.")
    W_U = model.W_U
    gain, centres = _gain(model.ln_final, W_U)
    directions = directions.to(W_U)
    if centres:
        directions = directions - directions.mean(dim=-1, keepdim=True)
    return ((directions * gain) @ W_U).float().cpu()


def _gain(norm: Any, W_U: Float[Tensor, "d_model d_vocab"]) -> tuple[Float[Tensor, " d_model"], bool]:
    """The norm's factor per coordinate, and whether it centres, both found by using it.

    Because hosts store it differently: some norms of Hugging Face hold the gain minus 1.
    """
    signs = torch.ones(len(W_U), device=W_U.device, dtype=W_U.dtype)
    signs[1::2] = -1
    signs[-1] *= len(W_U) % 2 == 0 or 0.5  # so that neither centring nor scaling sees an odd coordinate as special
    up, down, flat = (norm(x[None, None])[0, 0] for x in (signs, -signs, torch.ones_like(signs)))
    bias = (up + down) / 2
    return (up - down) / 2 * signs, bool((flat - bias).abs().max() < 0.1 * (up - bias).abs().max())


def _logit_changes(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    tokens: Tensor,
    response: Tensor,
    removed: Sequence[Intervention],
    batch_size: int,
) -> tuple[Float[Tensor, "latent d_vocab"], Float[Tensor, " latent"]]:
    """The chat model's logits minus those without each latent, averaged over the positions on which it is on."""
    hook_name, device = require_hook_name(crosscoder), device_of(pair.chat)
    totals: list[Any] = [0.0] * len(removed)
    n_active = torch.zeros(len(removed), dtype=torch.float64)
    for rows in tqdm(torch.arange(len(tokens)).split(batch_size), desc="Latents", unit="batch", leave=False):
        predicts = response[rows].roll(-1, dims=1)  # no response at position 0, so nothing wraps around
        stacked = pair.activations(tokens[rows], hook_name)
        chat = crosscoder.layout.split(stacked)[-1].to(device)
        own = resume_from(pair.chat, chat[None], hook_name, tokens[rows], predicts, progress=False)[0].float().cpu()
        for i, edit in enumerate(removed):
            delta = edit.deltas(stacked)[-1]
            assert delta is not None
            patched = chat + delta.to(chat)
            without = resume_from(pair.chat, patched[None], hook_name, tokens[rows], predicts, progress=False)[0]
            is_on = (edit.feature_acts(stacked)[..., 0] > 0).cpu()[predicts]
            totals[i] = totals[i] + (own - without.float().cpu())[is_on].double().sum(dim=0)
            n_active[i] += is_on.sum()
    return torch.stack(totals) / n_active[:, None], n_active


def _named(pair: HookedModelPair, scores: Float[Tensor, " d_vocab"], k: int, sign: int = 1) -> list[tuple[str, float]]:
    """The k highest scores, with their tokens' texts; `sign` undoes a change of sign."""
    values, ids = scores.topk(min(k, len(scores)))
    texts = ids.tolist() if pair.tokenizer is None else [pair.tokenizer.decode([i]) for i in ids.tolist()]
    return [(str(text), sign * value) for text, value in zip(texts, values.tolist(), strict=True)]
