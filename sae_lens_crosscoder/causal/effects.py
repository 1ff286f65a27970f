"""How far patched models are from the chat model: KL on the chat model's answers, with intervals over conversations."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.causal.kl_sums import KLSums
from sae_lens_crosscoder.causal.resume import resume_from
from sae_lens_crosscoder.causal.setups import (
    Setup,
    chat_leaning_halves,
    latent_setups,
    plain_setups,
    random_controls,
)
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_hook_name, require_inference
from sae_lens_crosscoder.models.hook_access import cached, device_of
from sae_lens_crosscoder.models.pair import HookedModelPair

_FIRST = "blocks.0.hook_resid_pre"


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
) -> pd.DataFrame:
    """How much of the difference between the models latents carry: the paper's causal experiment.

    The chat model's layers after the hook get the base model's activation, at every position, plus what latents carry
    over from the chat model; `KL(p_chat || p_patched)` says how far that is from the chat model itself.

    Args:
        tokens: conversations answered by the chat model, padded on the right.
        response: the tokens that are scored, each at the position that predicts it, as `chat_tokens(...).response`
            marks them: the assistant's text and its end-of-turn token.
        latents: the table of `diagnose` for this crosscoder.
        template: the template's tokens, as `chat_tokens(...).template` marks them; None leaves out the setup.
        sets: further sets of latents by name.
        pool_size: see `chat_leaning_halves`.
        with_bias: whether `all` carries over the decoder biases' difference too, and `error` does not.
        batch_size: conversations at a time.

    Returns:
        A row per setup, variant and window (see `plain_setups`, `chat_leaning_halves`, `random_controls` and
        `KLSums`). `kl_nats` is the mean per token, `reduction` the share of the KL of `none` that is gone, each with
        a 95 % interval `_low`, `_high` from a bootstrap over conversations, paired between setups. The row `chat` must
        be 0: it is the chat model's own activation. `.attrs["kl_sums"]` holds the sums per conversation.

    Raises:
        ValueError: for masks that do not fit, a pair the crosscoder was not trained on, or models of two widths.
    """
    crosscoder = require_inference(crosscoder, "causal_effects")
    halves = chat_leaning_halves(latents, pool_size)
    setups = plain_setups(crosscoder, template is not None, with_bias)
    pool = [*halves["top_delta_norm"], *halves["bottom_delta_norm"]]
    _refuse_masks(tokens, response, template)
    energy = carried_energy(pair, crosscoder, tokens, batch_size)
    controls = random_controls(latents, halves["top_nu"], pool, energy, seed)
    setups += latent_setups(crosscoder, {**halves, **controls, **(sets or {})})
    sums = kl_to_chat(pair, crosscoder, tokens, response, setups, template=template, batch_size=batch_size)
    table = sums.table(seed=seed)
    table.attrs["kl_sums"] = sums
    return table


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
) -> KLSums:
    """`KL(p_chat || p_patched)` in nats, softmax in float32, summed per setup, window and conversation.

    Arguments are those of `causal_effects`.
    """
    hook_name = require_hook_name(crosscoder)
    metadata = crosscoder.cfg.metadata
    pair.require_trained_on(metadata.model_name, metadata.chat_model_name)
    _refuse_masks(tokens, response, template)
    if not crosscoder.layout.same_width:
        raise ValueError(
            "The chat model cannot go on from the base model's activation: these models are "
            f"{crosscoder.layout.d_models} wide, and only models of one width share a basis."
        )
    device = device_of(pair.chat)
    sums = KLSums(setups, response)
    for rows in tqdm(torch.arange(len(tokens)).split(batch_size), desc="Causal effects", unit="batch", leave=False):
        some = tokens[rows]
        predicts = response[rows].roll(-1, dims=1)  # no response at position 0, so nothing wraps around

        def logits(residual: Tensor, at: str, some: Tensor = some, predicts: Tensor = predicts) -> Tensor:
            return resume_from(pair.chat, residual[None], at, some, predicts, progress=False)[0].float()

        chat = logits(_embedded(pair.chat, some), _FIRST).log_softmax(dim=-1)
        stacked = pair.activations(some, hook_name)
        parts = [part.to(device) for part in crosscoder.layout.split(stacked)]
        for index, setup in enumerate(setups):
            residual = setup.residual(parts, stacked, None if template is None else template[rows])
            patched = logits(residual, hook_name).log_softmax(dim=-1)
            sums.add(index, rows, (chat.exp() * (chat - patched)).sum(dim=-1))
    return sums


def _embedded(model: Any, tokens: Tensor) -> Float[Tensor, "prompt pos d_model"]:
    """What the first block reads, so that the chat model's own answer takes no shortcut through the hook."""
    _, cache = model.run_with_cache(tokens.to(device_of(model)), names_filter=[_FIRST], stop_at_layer=1)
    return cached(cache, _FIRST)


@torch.no_grad()
def carried_energy(
    pair: HookedModelPair, crosscoder: InferenceCrosscoder, tokens: Tensor, batch_size: int
) -> Float[Tensor, " d_sae"]:
    """Per latent, the mean over tokens of `|f_j (d_j^chat - d_j^base)|^2`."""
    total = torch.zeros(crosscoder.cfg.d_sae, dtype=torch.float64)
    for batch in harvest(pair, tokens, require_hook_name(crosscoder), batch_size):
        total += crosscoder.encode(batch.to(crosscoder.W_dec)).double().square().sum(dim=0).cpu()
    base, chat = crosscoder.decoders
    return total / tokens.numel() * (chat - base).double().square().sum(dim=-1).cpu()


def _refuse_masks(tokens: Tensor, response: Tensor, template: Tensor | None) -> None:
    for name, mask in (("response", response), ("template", template)):
        if mask is not None and mask.shape != tokens.shape:
            raise ValueError(
                f"{name} has shape {tuple(mask.shape)}, but tokens {tuple(tokens.shape)}: mark every token."
            )
    if not bool(response.any()):
        raise ValueError("response marks no token, so there is nothing to score.")
    if bool(response[:, 0].any()):
        raise ValueError("response marks the first token of a conversation, which no position predicts.")
