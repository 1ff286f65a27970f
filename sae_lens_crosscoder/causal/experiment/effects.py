"""The causal experiment: the KL from the chat model to patched models on the chat model's responses."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.experiment.effect_sums import EffectSums
from sae_lens_crosscoder.causal.experiment.setups import (
    Setup,
    chat_leaning_halves,
    latent_setups,
    plain_setups,
    random_controls,
    threshold_sets,
)
from sae_lens_crosscoder.causal.forward.response_batches import response_batches
from sae_lens_crosscoder.causal.forward.responses import Responses
from sae_lens_crosscoder.causal.patching.validation import validate_continuing
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, hook_name_of, validate_inference
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.models.kl import kl_divergence, log_probs
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.accumulators import AccumulatorCheckpoint
from sae_lens_crosscoder.storage.checksums import fingerprint


@dataclass(frozen=True)
class CausalEffects:
    """Result of `causal_effects`."""

    table: pd.DataFrame
    """A row per setup, variant and window: `kl_nats` is the mean KL per token, `reduction` the share of the KL of
    `none` that is removed, `loss_nats` the cross-entropy on the responses, `frac_agree` how often the most likely token
    is the chat model's. Each has a 95 % interval `_low`, `_high` from a bootstrap over conversations, paired between
    setups."""
    contrasts: pd.DataFrame
    """Tests between halves, and between the better half and random latents: see `EffectSums.contrasts`."""
    manifest: dict[str, Any]
    """The crosscoder, pair, conversations and settings of the experiment."""
    sums: EffectSums = field(repr=False)
    """Sums per conversation; `sums.contrasts(pairs)` tests other pairs of setups."""


@validate_arguments
def causal_effects(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    responses: Responses,
    latents: pd.DataFrame,
    *,
    models: Sequence[str] | None = None,
    sets: Mapping[str, Sequence[int]] | None = None,
    pool_size: int | None = None,
    with_bias: bool = False,
    seed: int = 0,
    batch_size: int = 8,
    checkpoint_path: str | Path | None = None,
) -> CausalEffects:
    """Measure how much of the difference between the models latents carry: the paper's causal experiment.

    The chat model's layers after the hook read the base model's activation, at every position, plus what latents carry
    over from the chat model. `KL(p_chat || p_patched)` is the distance to the unpatched chat model; the setup `chat`
    reads the chat model's own activation, so its KL must be 0.

    Args:
        responses: conversations with the chat model's responses (`generate_responses`) or given ones
            (`given_responses`); without a template mask the setup `template` is left out.
        latents: the table of `diagnose` for this crosscoder, and for the same `models`.
        models: names of two models, the first of which takes the place of base and the second that of chat; needed for
            more than two. The responses are the second one's: generate them with `pair.of(*models)`.
        sets: further sets of latents by name.
        pool_size: see `chat_leaning_halves`.
        with_bias: let `all` carry over the difference of the decoder biases too, and `error` leave it out.
        batch_size: conversations per forward pass; it bounds the memory.
        checkpoint_path: a file that is saved every minute, and from which the same experiment resumes to the same
            result. Removed at the end.

    Returns:
        A row per setup, variant and window (see `plain_setups`, `chat_leaning_halves`, `threshold_sets`,
        `random_controls` and `WINDOWS`), with contrasts between them.

    Raises:
        ValueError: for a pair the crosscoder was not trained on, more than two models without `models`, models of two
            widths, a table of other models, or a checkpoint of another experiment.
    """
    crosscoder = validate_inference(crosscoder, "causal_effects")
    two = TwoModels.of(crosscoder, models, "causal_effects")
    halves = chat_leaning_halves(latents, pool_size)
    validate_continuing(two, pair)
    setups = plain_setups(two, responses.template is not None, with_bias)
    pool = [*halves["top_delta_norm"], *halves["bottom_delta_norm"]]
    energy = carried_energy(two, pair, responses.tokens, batch_size)
    controls = random_controls(latents, halves["top_nu"], pool, energy, seed)
    setups += latent_setups(two, {**halves, **threshold_sets(latents), **controls, **(sets or {})})
    options: dict[str, Any] = {"models": models, "batch_size": batch_size, "checkpoint_path": checkpoint_path}
    sums = kl_to_chat(crosscoder, pair, responses, setups, **options)
    manifest = {
        **_origin(two, pair, responses, setups, batch_size),
        **{"n_conversations": len(responses), "pool_size": len(pool), "with_bias": with_bias, "seed": seed},
    }
    return CausalEffects(sums.table(seed=seed), sums.contrasts(seed=seed), manifest, sums)


@validate_arguments
@torch.no_grad()
def kl_to_chat(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    responses: Responses,
    setups: Sequence[Setup],
    *,
    models: Sequence[str] | None = None,
    batch_size: int = 8,
    checkpoint_path: str | Path | None = None,
) -> EffectSums:
    """Sum `KL(p_chat || p_patched)` in nats, loss and agreement per setup, window and conversation.

    Args:
        models: as in `causal_effects`, of more than two models.

    Other arguments are those of `causal_effects`.
    """
    crosscoder = validate_inference(crosscoder, "kl_to_chat")
    two = TwoModels.of(crosscoder, models, "kl_to_chat")
    validate_continuing(two, pair)
    sums = EffectSums(setups, responses.response)
    checkpoint = None
    if checkpoint_path is not None:
        origin = _origin(two, pair, responses, setups, batch_size)
        checkpoint = AccumulatorCheckpoint(checkpoint_path, "causal experiment", {"effects": sums}, origin)
    n_before = 0 if checkpoint is None else checkpoint.resume()
    batches = response_batches(two, pair, responses, batch_size, n_before)
    n_batches = -(-len(responses) // batch_size)
    template = responses.template
    with tqdm(batches, "Causal effects", n_batches, initial=n_before, unit="batch", leave=False) as bar:
        for n_done, batch in enumerate(bar, start=n_before + 1):
            chat = log_probs(batch.chat_logits())
            mask = None if template is None else template[batch.rows.to(template.device)]
            for index, setup in enumerate(setups):
                patched = log_probs(batch.logits(setup.residual(batch, mask)))
                sums.add(index, batch.rows, _quantities(chat, patched, batch.targets))
            if checkpoint is not None:
                checkpoint.save_if_due(n_done)
    if checkpoint is not None:
        checkpoint.remove()
    return sums


def _quantities(
    chat: Float[Tensor, "selected d_vocab"],
    patched: Float[Tensor, "selected d_vocab"],
    targets: Int[Tensor, " selected"],
) -> Float[Tensor, "quantity selected"]:
    """The QUANTITIES per token, from log-probabilities."""
    kl = kl_divergence(chat, patched)
    loss = -patched.gather(-1, targets[:, None])[:, 0]
    agrees = patched.argmax(dim=-1) == chat.argmax(dim=-1)
    return torch.stack([kl, loss, agrees.to(kl)])


def _origin(
    two: TwoModels,
    pair: HookedModelPair,
    responses: Responses,
    setups: Sequence[Setup],
    batch_size: int,
) -> dict[str, str]:
    names = [f"{setup.name} {setup.variant} {setup.start}" for setup in setups]
    conversations = (responses.tokens, responses.response, responses.template)
    return {
        "crosscoder": fingerprint(two.crosscoder.state_dict().values()),
        "pair of models": f"{pair.model_names} {two.names}",
        "set of conversations": fingerprint(tensor for tensor in conversations if tensor is not None),
        "list of setups": f"{names} {fingerprint(tensor for setup in setups for tensor in setup.tensors())}",
        "batch_size": f"{batch_size}",
    }


@torch.no_grad()
def carried_energy(two: TwoModels, pair: HookedModelPair, tokens: Tensor, batch_size: int) -> Float[Tensor, " d_sae"]:
    """Mean over tokens of `|f_j (d_j^chat - d_j^base)|^2` per latent, without tokens that dominate."""
    crosscoder = two.crosscoder
    total, n_tokens = torch.zeros(crosscoder.cfg.d_sae, dtype=torch.float64), 0
    batches = harvest(pair, tokens, hook_name_of(crosscoder), batch_size)
    for batch in tqdm(batches, "Energies", -(-len(tokens) // batch_size), unit="batch", leave=False):
        used = batch[crosscoder.trained_limits.ordinary(batch)]
        total += crosscoder.encode(used.to(crosscoder.W_dec)).double().square().sum(dim=0).cpu()
        n_tokens += len(used)
    base, chat = two.decoders
    return total / max(1, n_tokens) * (chat - base).double().square().sum(dim=-1).cpu()
