"""How far patched models are from the chat model: KL on the chat model's answers, with intervals over conversations."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.causal.experiment.effect_sums import CONTRASTS, EffectSums
from sae_lens_crosscoder.causal.experiment.setups import (
    Setup,
    chat_leaning_halves,
    latent_setups,
    plain_setups,
    random_controls,
    threshold_sets,
)
from sae_lens_crosscoder.causal.forward.answered import answered_batches
from sae_lens_crosscoder.causal.patching.requirements import require_answers
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name, require_inference
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.accumulators import AccumulatorCheckpoint
from sae_lens_crosscoder.storage.checksums import fingerprint


def causal_effects(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    tokens: Int[Tensor, "conversation pos"],
    response: Bool[Tensor, "conversation pos"],
    latents: pd.DataFrame,
    *,
    template: Bool[Tensor, "conversation pos"] | None = None,
    sets: Mapping[str, Sequence[int]] | None = None,
    pool_size: int | None = None,
    with_bias: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    checkpoint_path: str | Path | None = None,
) -> pd.DataFrame:
    """How much of the difference between the models latents carry: the paper's causal experiment.

    The chat model's layers after the hook get the base model's activation, at every position, plus what latents carry
    over from the chat model; `KL(p_chat || p_patched)` says how far that is from the chat model itself.

    Args:
        tokens: answered conversations, padded on the right: the chat model's own answers (`generate_responses`) or
            given ones (`given_responses`).
        response: the tokens that are scored, each at the position that predicts it, as `chat_tokens(...).response`
            marks them: the assistant's text and its end-of-turn token.
        latents: the table of `diagnose` for this crosscoder.
        template: the template's tokens, as `chat_tokens(...).template` marks them; None leaves out the setup.
        sets: further sets of latents by name.
        pool_size: see `chat_leaning_halves`.
        with_bias: whether `all` carries over the decoder biases' difference too, and `error` does not.
        batch_size: conversations at a time: what bounds the memory.
        checkpoint_path: a file in which sums are saved every minute, and from which the same experiment goes on, to
            the same table, if it was interrupted. Removed at the end.

    Returns:
        A row per setup, variant and window (see `plain_setups`, `chat_leaning_halves`, `threshold_sets`,
        `random_controls` and `WINDOWS`). `kl_nats` is the mean per token, `reduction` the share of the KL of `none`
        that is gone, `loss_nats` the cross-entropy on the answers, `frac_agree` how often the most likely token is the
        chat model's, each with a 95 % interval `_low`, `_high` from a bootstrap over conversations, paired between
        setups. The row `chat` must have a KL of 0: it is the chat model's own activation. `.attrs["sums"]` holds the
        sums per conversation, of which `effect_contrasts` makes tests.

    Raises:
        ValueError: for masks that do not fit, a pair the crosscoder was not trained on, models of two widths, or a
            checkpoint of another experiment.
    """
    crosscoder = require_inference(crosscoder, "causal_effects")
    halves = chat_leaning_halves(latents, pool_size)
    setups = plain_setups(crosscoder, template is not None, with_bias)
    pool = [*halves["top_delta_norm"], *halves["bottom_delta_norm"]]
    require_answers(pair, crosscoder, tokens, response, template)
    energy = carried_energy(pair, crosscoder, tokens, batch_size)
    controls = random_controls(latents, halves["top_nu"], pool, energy, seed)
    chosen = {**halves, **threshold_sets(latents), **controls, **(sets or {})}
    setups += latent_setups(crosscoder, chosen)
    options: dict[str, Any] = {"template": template, "batch_size": batch_size, "checkpoint_path": checkpoint_path}
    sums = kl_to_chat(pair, crosscoder, tokens, response, setups, **options)
    table = sums.table(seed=seed)
    table.attrs["sums"] = sums
    return table


def effect_contrasts(
    effects: pd.DataFrame, pairs: Sequence[tuple[str, str]] = CONTRASTS, *, seed: int = 0
) -> pd.DataFrame:
    """Tests between halves, and between the better half and random latents: see `EffectSums.contrasts`.

    Args:
        effects: the table of `causal_effects`, with its `.attrs`.
        pairs: names of setups; each pair is compared in every variant that both have.
    """
    sums = effects.attrs.get("sums")
    if not isinstance(sums, EffectSums):
        raise ValueError("effects holds no sums per conversation in .attrs['sums']: give the table of causal_effects.")
    return sums.contrasts(pairs, seed=seed)


@torch.no_grad()
def kl_to_chat(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    tokens: Int[Tensor, "conversation pos"],
    response: Bool[Tensor, "conversation pos"],
    setups: Sequence[Setup],
    *,
    template: Bool[Tensor, "conversation pos"] | None = None,
    batch_size: int = 8,
    checkpoint_path: str | Path | None = None,
) -> EffectSums:
    """`KL(p_chat || p_patched)` in nats, softmax in float32, loss and agreement, per setup, window and conversation.

    Arguments are those of `causal_effects`.
    """
    require_answers(pair, crosscoder, tokens, response, template)
    sums = EffectSums(setups, response)
    checkpoint = None
    if checkpoint_path is not None:
        origin = _origin(pair, crosscoder, [tokens, response, template], setups, batch_size)
        checkpoint = AccumulatorCheckpoint(checkpoint_path, "causal experiment", {"effects": sums}, origin)
    n_before = 0 if checkpoint is None else checkpoint.resume()
    batches = answered_batches(pair, crosscoder, tokens, response, batch_size, n_before)
    n_batches = -(-len(tokens) // batch_size)
    with tqdm(batches, "Causal effects", n_batches, initial=n_before, unit="batch", leave=False) as bar:
        for n_done, batch in enumerate(bar, start=n_before + 1):
            chat = batch.chat_logits().log_softmax(dim=-1)
            for index, setup in enumerate(setups):
                marked = None if template is None else template[batch.rows.to(template.device)]
                patched = batch.logits(setup.residual(batch.parts, batch.stacked, marked)).log_softmax(dim=-1)
                sums.add(index, batch.rows, _measured(chat, patched, batch.following))
            if checkpoint is not None:
                checkpoint.save_if_due(n_done)
    if checkpoint is not None:
        checkpoint.remove()
    return sums


def _measured(
    chat: Float[Tensor, "selected d_vocab"],
    patched: Float[Tensor, "selected d_vocab"],
    following: Int[Tensor, " selected"],
) -> Float[Tensor, "quantity selected"]:
    """The QUANTITIES, from log-probabilities."""
    kl = (chat.exp() * (chat - patched)).sum(dim=-1)
    loss = -patched.gather(-1, following[:, None])[:, 0]
    agrees = patched.argmax(dim=-1) == chat.argmax(dim=-1)
    return torch.stack([kl, loss, agrees.to(kl)])


def _origin(
    pair: HookedModelPair,
    crosscoder: InferenceCrosscoder,
    conversations: Sequence[Tensor | None],
    setups: Sequence[Setup],
    batch_size: int,
) -> dict[str, str]:
    names = [f"{setup.name} {setup.variant} {setup.start}" for setup in setups]
    return {
        "crosscoder": fingerprint(crosscoder.state_dict().values()),
        "pair of models": f"{pair.model_names}",
        "set of conversations": fingerprint(part for part in conversations if part is not None),
        "list of setups": f"{names} {fingerprint(tensor for setup in setups for tensor in setup.tensors())}",
        "batch_size": f"{batch_size}",
    }


@torch.no_grad()
def carried_energy(
    pair: HookedModelPair, crosscoder: InferenceCrosscoder, tokens: Tensor, batch_size: int
) -> Float[Tensor, " d_sae"]:
    """Per latent, the mean over tokens of `|f_j (d_j^chat - d_j^base)|^2`."""
    total = torch.zeros(crosscoder.cfg.d_sae, dtype=torch.float64)
    batches = harvest(pair, tokens, require_hook_name(crosscoder), batch_size)
    for batch in tqdm(batches, "Energies", -(-len(tokens) // batch_size), unit="batch", leave=False):
        total += crosscoder.encode(batch.to(crosscoder.W_dec)).double().square().sum(dim=0).cpu()
    base, chat = crosscoder.decoders
    return total / tokens.numel() * (chat - base).double().square().sum(dim=-1).cpu()
