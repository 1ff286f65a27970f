"""Everything about a crosscoder's latents that a pair of models and held-out tokens, or a cache of them, can tell."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.analysis.decoupling.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.decoupling.divergence import activation_divergence
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.examples.collect import collect_examples, require_examples_of
from sae_lens_crosscoder.analysis.examples.file import ExamplesFile
from sae_lens_crosscoder.analysis.inputs import PromptSource, prompt_source
from sae_lens_crosscoder.analysis.statistics.concepts import MatchedContrast, concept_table
from sae_lens_crosscoder.analysis.statistics.latent_statistics import latent_statistics
from sae_lens_crosscoder.analysis.statistics.profiles import activation_profiles
from sae_lens_crosscoder.causal import LogitLens, Responses, kl_between_models, latent_effects, logit_lens
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, require_inference
from sae_lens_crosscoder.data.token_groups import packed_token_groups
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.explorer.records import Exploration

_CONVERSATION_GROUPS = ("template", "user", "assistant")


def explore(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair | None = None,
    tokens: Int[Tensor, "batch pos"] | None = None,
    latents: pd.DataFrame | None = None,
    *,
    keep: Bool[Tensor, "batch pos"] | None = None,
    activations: ActivationCache | None = None,
    tokenizer: Any = None,
    examples: ExamplesFile | None = None,
    contrasts: Mapping[str, MatchedContrast] | None = None,
    responses: Responses | None = None,
    n_random: int = 40,
    seed: int = 0,
    batch_size_prompts: int = 32,
) -> Exploration:
    """Look at every latent from all sides: what `write_explorer` shows.

    A cache knows nothing of what the models say, so that from one there are no logit lens, no KL, no causal effects and
    no known concepts.

    Args:
        pair, tokens: the two models, and held-out token ids of shape (batch, pos): not those the crosscoder was trained
            on.
        keep: which of the tokens count, True or False each, as `runner.held_out_kept`; None for all.
        activations: instead of a pair and tokens, a cache of their activations.
        tokenizer: by default the pair's; of a cache, the one whose tokens these are. Without it they are numbers.
        latents: the table of `diagnose`, which runs if there is none.
        examples: of these tokens, from `collect_examples`, which runs if there are none.
        contrasts: known concepts, as `concept_table` takes them.
        responses: answered conversations, as `generate_responses` makes them. On them, the causal effects are measured
            of the latents that are specific to a model, and of random ones.
        n_random: how many of the live latents of neither model are drawn, as the band to compare these effects with.
        seed: of what is drawn.

    Raises:
        ValueError: for contrasts or responses without a pair, examples of other tokens, and as the functions that it
            calls.
    """
    crosscoder = require_inference(crosscoder, "explore")
    if pair is None and (contrasts or responses is not None):
        raise ValueError("contrasts and responses are put to the models: give pair= and tokens=, or leave them out.")
    data: dict[str, Any] = {"pair": pair, "tokens": tokens, "keep": keep, "activations": activations}
    data["batch_size_prompts"] = batch_size_prompts
    source = prompt_source(crosscoder, purpose="explore", **data)
    if examples is not None:
        require_examples_of(examples, source.tokens, source.keep)
    tokenizer = tokenizer or getattr(pair, "tokenizer", None)
    table = diagnose(crosscoder, **data) if latents is None else latents
    if examples is None:
        examples = _collected(crosscoder, tokenizer=tokenizer, seed=seed, **data)
    statistics = _statistics(crosscoder, tokenizer, source, data)
    twins = None
    if crosscoder.layout.n_models == 2 and crosscoder.layout.same_width:
        pairs = decoupled_pairs(crosscoder, table)
        twins = activation_divergence(crosscoder, pairs, max_activation=table["max_activation"], **data)
    found = Exploration(
        table=_with_more_columns(table, crosscoder, statistics),
        tokenizer=tokenizer,
        statistics=statistics,
        profiles=activation_profiles(crosscoder, max_activation=table["max_activation"], **data),
        examples=examples,
        twins=twins,
    )
    if pair is None or tokens is None:
        return found
    return replace(
        found,
        lenses=_lenses(crosscoder, pair),
        kl=kl_between_models(pair, tokens, batch_size=batch_size_prompts),
        effects=None if responses is None else _effects(crosscoder, pair, table, responses, n_random, seed),
        concepts=concept_table(crosscoder, pair, table, contrasts) if contrasts else None,
    )


def _statistics(
    crosscoder: InferenceCrosscoder, tokenizer: Any, source: PromptSource, data: dict[str, Any]
) -> pd.DataFrame | None:
    """By token group, if the tokenizer has a chat template that tells groups apart."""
    if getattr(tokenizer, "chat_template", None) is None:
        return None
    groups = packed_token_groups(source.tokens, tokenizer, source.keep)
    if data["activations"] is not None:  # which hold no tokens but those that are kept
        groups = replace(groups, labels=groups.labels[source.keep][None])
    return latent_statistics(crosscoder, groups=groups, **data)


def _collected(crosscoder: InferenceCrosscoder, **kwargs: Any) -> ExamplesFile:
    with tempfile.TemporaryDirectory() as folder:
        # The file stays open, and so readable, after its name is gone.
        path = Path(folder, "examples.safetensors")
        return collect_examples(
            crosscoder, path=path, n_top=10, n_quantiles=5, n_per_quantile=3, window=(16, 10), **kwargs
        )


def _lenses(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> dict[str, LogitLens]:
    """Of the models that show a final norm and an unembedding."""
    parts = zip(crosscoder.layout.names, pair.members, crosscoder.decoders, strict=True)
    return {
        name: logit_lens(model, decoder.detach())
        for name, model, decoder in parts
        if hasattr(model, "ln_final") and hasattr(model, "W_U")
    }


def _with_more_columns(
    table: pd.DataFrame, crosscoder: InferenceCrosscoder, statistics: pd.DataFrame | None
) -> pd.DataFrame:
    norms = crosscoder.layout.norms(crosscoder.W_enc.detach().T.double()).cpu()
    columns = {f"enc_norm_{name}": norms[:, m].numpy() for m, name in enumerate(crosscoder.layout.names)}
    if statistics is not None:
        # What `latent_statistics` would say of conversations alone: without BOS and plain text. 0 / 0 is nan.
        in_conversations = statistics[[f"n_active_{group}" for group in _CONVERSATION_GROUPS]].sum(axis=1)
        columns["frac_template"] = (statistics["n_active_template"] / in_conversations).to_numpy()
    return table.assign(**columns)


def _effects(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    table: pd.DataFrame,
    responses: Responses,
    n_random: int,
    seed: int,
) -> pd.DataFrame:
    """Effects of the latents that are specific to a model, and, in `.attrs["random"]`, of random ones that are not."""
    specific: Sequence[int] = table.index[table.verdict.isin(["chat_specific", "base_specific"])].tolist()
    others = table[~table.dead.astype(bool) & table.label.isin(["shared", "other"])]
    drawn: Sequence[int] = others.sample(min(n_random, len(others)), random_state=seed).index.tolist()
    measured = latent_effects(crosscoder, pair, responses, [*specific, *drawn])
    effects = measured.loc[list(specific)]
    random = measured.loc[list(drawn), ["kl_change_added", "kl_change_removed"]]
    effects.attrs["random"] = random.to_dict("list")
    effects.attrs["n_conversations"] = len(responses)
    return effects
