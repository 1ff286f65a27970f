"""What single latents do: their effect on the KL, on the next tokens, and what they write in the vocabulary."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.causal.forward.answered import AnsweredBatch, answered_batches
from sae_lens_crosscoder.causal.patching.interventions import intervention
from sae_lens_crosscoder.causal.patching.requirements import require_answers
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
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

    These layers run only for conversations in which a latent is on, several latents and conversations at a time.

    Args:
        tokens, response: answered conversations, as for `causal_effects`.
        latents: such as `table[table.verdict == "chat_specific"].index`.
        k: how many tokens are named.
        batch_size: conversations at a time, and edited conversations at a time: what bounds the memory.

    Returns:
        A row per latent. `kl_change_added` is how much `KL(p_chat || p_patched)` per token changes when the latent is
        added to the base model's activation (below 0: nearer to the chat model), `kl_change_removed` when it is removed
        from the chat model's, where it was 0. `n_active` counts the scored positions on which it is on; over
        these, `raises` and `lowers` name the tokens whose logits it changes most in the chat model, from highest
        and from lowest, as (text, mean change in logits against removing it). `writes` and `writes_against` are its
        direct logit attribution: what its decoder vector in the chat model comes to in the vocabulary, with the final
        norm's gain but before its division by the activation's size, as (text, logits per unit of activation).

    Raises:
        ValueError: as `causal_effects`, and for no latents, or latents that do not exist or repeat.
    """
    crosscoder = require_inference(crosscoder, "latent_effects")
    latents = [int(j) for j in latents]
    if not latents:
        raise ValueError("latents is empty, so there is nothing to measure: give at least one index.")
    added, removed = (intervention(crosscoder, latents, "add"), intervention(crosscoder, latents, "ablate"))
    require_answers(pair, crosscoder, tokens, response)
    sums = _Sums(len(latents))
    batches = answered_batches(pair, crosscoder, tokens, response, batch_size)
    for batch in tqdm(batches, "Latents", -(-len(tokens) // batch_size), unit="batch", leave=False):
        f = added.feature_acts(batch.stacked).to(batch.tokens.device)
        sums.add(batch, f, _present(added.directions[0]), _present(removed.directions[-1]), batch_size)
    kl_change = {name: total / int(response.sum()) for name, total in sums.kl_change.items()}
    changes = sums.logit_change / sums.n_active[:, None]
    direct = logit_attribution(pair.chat, crosscoder.decoders[-1].detach()[latents])
    rows: dict[int, dict[str, Any]] = {}
    for i, j in enumerate(latents):
        rows[j] = {
            "kl_change_added": float(kl_change["added"][i]),
            "kl_change_removed": float(kl_change["removed"][i]),
            "n_active": int(sums.n_active[i]),
            "raises": _named(pair, changes[i], k) if sums.n_active[i] else [],
            "lowers": _named(pair, -changes[i], k, sign=-1) if sums.n_active[i] else [],
            "writes": _named(pair, direct[i], k),
            "writes_against": _named(pair, -direct[i], k, sign=-1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent")


class _Sums:
    """Over conversations, in float64 on the CPU, one entry per latent."""

    def __init__(self, n_latents: int) -> None:
        zeros = torch.zeros(n_latents, dtype=torch.float64)
        self.kl_change = {"added": zeros, "removed": zeros.clone()}
        self.n_active = zeros.clone()
        self.logit_change: Any = 0.0
        """(latent, d_vocab): the chat model's logits less those without the latent, where it is on."""

    def add(
        self,
        batch: AnsweredBatch,
        f: Float[Tensor, "row pos latent"],
        to_base: Float[Tensor, "latent d_model"],
        from_chat: Float[Tensor, "latent d_model"],
        batch_size: int,
    ) -> None:
        """Add a batch's; a latent adds `to_base`, or removes `from_chat`, per unit of its activation `f`."""
        n_scored = batch.predicts.sum(dim=-1).tolist()
        chat, base = batch.chat_logits(), batch.logits(batch.parts[0])
        none = torch.stack([part.sum() for part in _kl(chat, base).split(n_scored)])
        own = chat.split(n_scored)
        is_on = (f > 0)[batch.predicts].split(n_scored)
        self.n_active += torch.cat(is_on).sum(dim=0).cpu()
        if isinstance(self.logit_change, float):
            self.logit_change = torch.zeros(len(self.n_active), chat.shape[-1], dtype=torch.float64)
        for row, latent, logits in _one_latent_each(batch, batch.parts[0], f, to_base, batch_size):
            self.kl_change["added"][latent] += float(_kl(own[row], logits).sum() - none[row])
        for row, latent, logits in _one_latent_each(batch, batch.parts[-1], f, from_chat, batch_size):
            self.kl_change["removed"][latent] += float(_kl(own[row], logits).sum())
            on = is_on[row][:, latent]
            self.logit_change[latent] += (own[row] - logits)[on].double().sum(dim=0).cpu()


class _Edited(NamedTuple):
    row: int
    latent: int
    logits: Float[Tensor, "selected d_vocab"]


def _one_latent_each(
    batch: AnsweredBatch,
    start: Float[Tensor, "row pos d_model"],
    f: Float[Tensor, "row pos latent"],
    directions: Float[Tensor, "latent d_model"],
    batch_size: int,
) -> Iterator[_Edited]:
    """The logits of every conversation with every latent that is on where it can matter, `batch_size` at a time."""
    scored_later = batch.predicts.flip(1).cummax(dim=1).values.flip(1)
    rows, latents = ((f > 0) & scored_later[..., None]).any(dim=1).nonzero(as_tuple=True)
    n_scored = batch.predicts.sum(dim=-1)
    for some in torch.arange(len(rows), device=rows.device).split(batch_size):
        row, latent = rows[some], latents[some]
        written = f[row, :, latent][..., None] * directions.to(f)[latent][:, None]
        logits = batch.logits(start[row] + written.to(start), row).split(n_scored[row].tolist())
        yield from map(_Edited, row.tolist(), latent.tolist(), logits)


def _kl(chat: Float[Tensor, "selected d_vocab"], patched: Float[Tensor, "selected d_vocab"]) -> Tensor:
    """`KL(p_chat || p_patched)` at every position, from logits."""
    log_p, log_q = chat.log_softmax(dim=-1), patched.log_softmax(dim=-1)
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1)


def _present(direction: Tensor | None) -> Tensor:
    assert direction is not None
    return direction


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


def _named(pair: HookedModelPair, scores: Float[Tensor, " d_vocab"], k: int, sign: int = 1) -> list[tuple[str, float]]:
    """The k highest scores, with their tokens' texts; `sign` undoes a change of sign."""
    values, ids = scores.topk(min(k, len(scores)))
    texts = ids.tolist() if pair.tokenizer is None else [pair.tokenizer.decode([i]) for i in ids.tolist()]
    return [(str(text), sign * value) for text, value in zip(texts, values.tolist(), strict=True)]
