"""The effect of single latents on the KL to the chat model and on the next tokens."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.forward.next_tokens import token_texts
from sae_lens_crosscoder.causal.forward.response_batches import ResponseBatch, response_batches
from sae_lens_crosscoder.causal.forward.responses import Responses
from sae_lens_crosscoder.causal.latents.logit_attribution import logit_attribution
from sae_lens_crosscoder.causal.patching.intervention import intervention
from sae_lens_crosscoder.causal.patching.validation import validate_continuing
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair


@validate_arguments
@torch.no_grad()
def latent_effects(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    responses: Responses,
    latent_ids: Sequence[int],
    *,
    models: Sequence[str] | None = None,
    k: int = 5,
    batch_size: int = 8,
) -> pd.DataFrame:
    """Measure what each latent alone does to the chat model's later layers, and which tokens it promotes.

    The later layers run only for conversations in which a latent is active, several latents and conversations at once.

    Args:
        latent_ids: the latents, such as `table[table.verdict == "chat_specific"].index`.
        models: as in `causal_effects`, of more than two models.
        k: number of tokens that are named.
        batch_size: conversations, and edited conversations, per forward pass; it bounds the memory.

    Returns:
        A row per latent. `kl_change_added` is the change of `KL(p_chat || p_patched)` per token when the latent is
        added to the base model's activation (below 0 is nearer to the chat model), `kl_change_removed` when it is
        removed from the chat model's, where the KL was 0. `n_active` counts the scored positions where it is active.
        Over these, `raises` and `lowers` name the tokens whose logits change most in the chat model, as (text, mean
        change in logits against removing it). `writes` and `writes_against` are the direct logit attribution of its
        decoder vector in the chat model, as (text, logits per unit of activation), with the final norm's gain but
        before its division by the activation's size.

    Raises:
        ValueError: as `causal_effects`, and for no latents, or latents that do not exist or repeat.
    """
    crosscoder = validate_inference(crosscoder, "latent_effects")
    two = TwoModels.of(crosscoder, models, "latent_effects")
    validate_continuing(two, pair)
    latent_ids = [int(latent) for latent in latent_ids]
    if not latent_ids:
        raise ValueError("latent_ids is empty: pass at least one latent.")
    added, removed = (intervention(crosscoder, latent_ids, how, models=two.names) for how in ("add", "ablate"))
    base, chat = two.places
    sums = _Sums(len(latent_ids))
    batches = response_batches(two, pair, responses, batch_size)
    for batch in tqdm(batches, "Latents", -(-len(responses) // batch_size), unit="batch", leave=False):
        f = added.feature_acts(batch.stacked).to(batch.tokens.device)
        sums.add(batch, f, _direction(added.directions[base]), _direction(removed.directions[chat]), batch_size)
    kl_change = {name: total / int(responses.response.sum()) for name, total in sums.kl_change.items()}
    logit_changes = sums.logit_change / sums.n_active[:, None]
    written = logit_attribution(pair.members[chat], two.decoders[1][latent_ids])
    rows: dict[int, dict[str, Any]] = {}
    for i, latent in enumerate(latent_ids):
        rows[latent] = {
            "kl_change_added": float(kl_change["added"][i]),
            "kl_change_removed": float(kl_change["removed"][i]),
            "n_active": int(sums.n_active[i]),
            "raises": _named(pair, logit_changes[i], k) if sums.n_active[i] else [],
            "lowers": _named(pair, -logit_changes[i], k, sign=-1) if sums.n_active[i] else [],
            "writes": _named(pair, written[i], k),
            "writes_against": _named(pair, -written[i], k, sign=-1),
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("latent")


class _Sums:
    """Sums over conversations in float64 on the CPU, one entry per latent."""

    def __init__(self, n_latents: int) -> None:
        zeros = torch.zeros(n_latents, dtype=torch.float64)
        self.kl_change = {"added": zeros, "removed": zeros.clone()}
        self.n_active = zeros.clone()
        self.logit_change: Any = 0.0
        """(latent, d_vocab): the chat model's logits less those without the latent, where it is active."""

    def add(
        self,
        batch: ResponseBatch,
        f: Float[Tensor, "row pos latent"],
        to_base: Float[Tensor, "latent d_model"],
        from_chat: Float[Tensor, "latent d_model"],
        batch_size: int,
    ) -> None:
        """Add a batch; per unit of activation `f`, a latent adds `to_base` or `from_chat` to the residual stream."""
        n_scored = batch.predicts.sum(dim=-1).tolist()
        chat, base = batch.chat_logits(), batch.logits(batch.parts[0])
        kl_of_base = torch.stack([part.sum() for part in _kl(chat, base).split(n_scored)])
        unpatched = chat.split(n_scored)
        active = (f > 0)[batch.predicts].split(n_scored)
        self.n_active += torch.cat(active).sum(dim=0).cpu()
        if isinstance(self.logit_change, float):
            self.logit_change = torch.zeros(len(self.n_active), chat.shape[-1], dtype=torch.float64)
        for row, latent, logits in _edited_logits(batch, batch.parts[0], f, to_base, batch_size):
            self.kl_change["added"][latent] += float(_kl(unpatched[row], logits).sum() - kl_of_base[row])
        for row, latent, logits in _edited_logits(batch, batch.parts[1], f, from_chat, batch_size):
            self.kl_change["removed"][latent] += float(_kl(unpatched[row], logits).sum())
            on = active[row][:, latent]
            self.logit_change[latent] += (unpatched[row] - logits)[on].double().sum(dim=0).cpu()


class _EditedLogits(NamedTuple):
    row: int
    latent: int
    logits: Float[Tensor, "selected d_vocab"]


def _edited_logits(
    batch: ResponseBatch,
    residual: Float[Tensor, "row pos d_model"],
    f: Float[Tensor, "row pos latent"],
    directions: Float[Tensor, "latent d_model"],
    batch_size: int,
) -> Iterator[_EditedLogits]:
    """Logits per conversation and latent that is active at or before a scored position, `batch_size` at a time."""
    scored_later = batch.predicts.flip(1).cummax(dim=1).values.flip(1)
    rows, latents = ((f > 0) & scored_later[..., None]).any(dim=1).nonzero(as_tuple=True)
    if len(rows) == 0:
        return
    n_scored = batch.predicts.sum(dim=-1)
    for indices in torch.arange(len(rows), device=rows.device).split(batch_size):
        row, latent = rows[indices], latents[indices]
        edit = f[row, :, latent][..., None] * directions.to(f)[latent][:, None]
        logits = batch.logits(residual[row] + edit.to(residual), row).split(n_scored[row].tolist())
        yield from map(_EditedLogits, row.tolist(), latent.tolist(), logits)


def _kl(chat: Float[Tensor, "selected d_vocab"], patched: Float[Tensor, "selected d_vocab"]) -> Tensor:
    return kl_divergence(log_probs(chat), log_probs(patched))


def _direction(direction: Tensor | None) -> Tensor:
    assert direction is not None
    return direction


def _named(pair: HookedModelPair, scores: Float[Tensor, " d_vocab"], k: int, sign: int = 1) -> list[tuple[str, float]]:
    """The k highest scores with their tokens' texts; `sign` undoes a change of sign."""
    values, token_ids = scores.topk(min(k, len(scores)))
    return [
        (str(text), sign * value)
        for text, value in zip(token_texts(pair, token_ids.tolist()), values.tolist(), strict=True)
    ]
