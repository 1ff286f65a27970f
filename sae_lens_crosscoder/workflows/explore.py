"""Explore a crosscoder's latents with a pair of models and held-out tokens, or a cache of activations."""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.contrasts.concepts import concepts
from sae_lens_crosscoder.analysis.decoupling.decoder_pairs import decoupled_pairs
from sae_lens_crosscoder.analysis.decoupling.divergence import activation_divergence
from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis, validate_one_pair
from sae_lens_crosscoder.analysis.examples.collect import collect_examples, validate_examples
from sae_lens_crosscoder.analysis.examples.file import ExamplesFile
from sae_lens_crosscoder.analysis.statistics.latent_statistics import LatentStatistics, latent_statistics
from sae_lens_crosscoder.analysis.statistics.profiles import activation_profiles
from sae_lens_crosscoder.analysis.use.example_codes import example_codes
from sae_lens_crosscoder.analysis.use.result import LatentUse
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal import LogitLens, Responses, kl_between_models, latent_effects, logit_lens
from sae_lens_crosscoder.crosscoders.compared import validate_two_models
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder, validate_inference, validate_one_hook
from sae_lens_crosscoder.crosscoders.origin import validate_pair
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.data.token_groups import packed_token_groups
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.explorer.records import Exploration
from sae_lens_crosscoder.storage.checksums import named_fingerprint

_MOST_KEPT_BYTES = 1 << 30
_CONVERSATION_GROUPS = ("template", "user", "assistant")


@validate_arguments
def explore(
    crosscoder: InferenceCrosscoder,
    data: EvalData,
    diagnosis: Diagnosis | None = None,
    *,
    examples: ExamplesFile | None = None,
    contrasts: Sequence[Contrast] = (),
    responses: Responses | None = None,
    use: LatentUse | None = None,
    n_random: int = 40,
    seed: int = 0,
) -> Exploration:
    """Gather everything about every latent that `write_explorer` shows.

    A cache has activations but no models, so it gives no logit lens, KL, causal effects or known concepts. Models with
    different tokenizers have no KL.

    Args:
        data: held-out tokens with a pair, or a cache. Without a tokenizer, tokens are shown as numbers.
        diagnosis: of this crosscoder; None runs `diagnose`.
        examples: of these tokens, from `collect_examples`; None runs it.
        contrasts: known concepts; the latents that carry them are marked.
        responses: answered conversations, as `generate_responses` returns. The causal effects of the latents that are
            specific to a model, and of random ones, are measured on them.
        use: use of this crosscoder's latents, from `latent_use`; its columns join the table, and examples show the code
            of each model alone, for which the models run once more.
        n_random: live latents of neither model to draw, as the band to compare these effects with.
        seed: of the draws.

    Raises:
        ValueError: for contrasts or responses without a pair, examples of other tokens, and in the cases of the
            functions that it calls.
    """
    crosscoder = validate_inference(crosscoder, "explore")
    validate_one_hook(crosscoder, "explore")
    if diagnosis is not None:
        validate_one_pair(diagnosis, "explore")
    else:
        validate_two_models(crosscoder, "explore without a diagnosis")
    if data.pair is None and (contrasts or responses is not None):
        raise ValueError(
            "contrasts and responses need the models. Pass EvalData with pair and tokens, or leave them out."
        )
    tokens, token_mask = data.contexts
    if examples is not None:
        validate_examples(examples, tokens, token_mask)
    data = _kept(crosscoder, data)
    diagnosis = diagnosis or diagnose(crosscoder, data)
    compared: Sequence[str] | None = diagnosis.manifest.get("compared")
    table = diagnosis.latents
    if use is not None:
        use.validate_read_from(named_fingerprint(crosscoder.state_dict()))
        table = table.drop(columns=[*use.columns], errors="ignore").join(use.latents[[*use.columns]])
    if examples is None:
        examples = _collected(crosscoder, data, seed)
    statistics = _statistics(crosscoder, data)
    twins = None
    if crosscoder.layout.same_width and (crosscoder.layout.is_pair or compared is not None):
        pairs = decoupled_pairs(crosscoder, table, models=compared)
        twins = activation_divergence(crosscoder, data, pairs, max_activation=table["max_activation"])
    exploration = Exploration(
        table=_with_encoder_columns(table, crosscoder, statistics),
        manifest=diagnosis.manifest,
        tokenizer=data.tokenizer,
        statistics=statistics,
        profiles=activation_profiles(crosscoder, data, table["max_activation"]),
        examples=examples,
        twins=twins,
        use=use,
        codes=None if use is None else example_codes(crosscoder, data, examples),
    )
    if data.pair is None:
        return exploration
    exploration = replace(
        exploration,
        lenses=_lenses(crosscoder, data.pair),
        kl=_kl(data, diagnosis),
        concepts=concepts(crosscoder, data, contrasts, table, models=compared).table if contrasts else None,
    )
    if responses is None:
        return exploration
    effects, random_effects = _effects(crosscoder, data.pair, table, responses, compared, n_random, seed)
    n_conversations = len(responses.tokens)
    return replace(exploration, effects=effects, random_effects=random_effects, n_conversations=n_conversations)


def _kept(crosscoder: InferenceCrosscoder, data: EvalData) -> EvalData:
    """The data with their activations in memory, unless they are too many or kept already: all else reads them."""
    if data.pair is None:
        return data
    hook_name = validate_pair(crosscoder, data.pair)
    n_bytes = 4 * crosscoder.layout.d_in * int(data.contexts[1].sum())
    if hook_name in data.kept_batches or n_bytes > _MOST_KEPT_BYTES:
        return data
    return data.keep_activations(hook_name)


def _statistics(crosscoder: InferenceCrosscoder, data: EvalData) -> LatentStatistics | None:
    """Statistics by token group, if the tokenizer has a chat template that tells groups apart."""
    if getattr(data.tokenizer, "chat_template", None) is None:
        return None
    tokens, token_mask = data.contexts
    groups = packed_token_groups(tokens, data.tokenizer, token_mask)
    if data.activations is not None:  # the cache has only the tokens of the mask
        groups = replace(groups, labels=groups.labels[token_mask][None])
    return latent_statistics(crosscoder, data.with_groups(groups))


def _collected(crosscoder: InferenceCrosscoder, data: EvalData, seed: int) -> ExamplesFile:
    with tempfile.TemporaryDirectory() as folder:
        # The file stays open and readable after the folder is deleted.
        path = Path(folder, "examples.safetensors")
        sizes: dict[str, Any] = {"n_top": 10, "n_quantiles": 5, "n_per_quantile": 3, "window": (16, 10)}
        return collect_examples(crosscoder, data, path, seed=seed, **sizes)


def _compared(pair: HookedModelPair, diagnosis: Diagnosis) -> HookedModelPair:
    """The two models that the diagnosis compares."""
    return pair.of(*diagnosis.manifest["compared"]) if len(pair.members) > 2 else pair


def _kl(data: EvalData, diagnosis: Diagnosis) -> Float[Tensor, "batch pos"] | None:
    """KL between the compared models after each token; None for models with different tokenizers."""
    tokens, _ = data.contexts
    if data.pair is None or not data.pair.has_one_tokenizer:
        return None
    return kl_between_models(_compared(data.pair, diagnosis), tokens, batch_size=data.batch_size)


def _lenses(crosscoder: InferenceCrosscoder, pair: HookedModelPair) -> dict[str, LogitLens]:
    """Compute the logit lens of each model that has a final norm and an unembedding."""
    parts = zip(crosscoder.layout.names, pair.members, crosscoder.decoders, strict=True)
    return {
        name: logit_lens(model, decoder.detach())
        for name, model, decoder in parts
        if hasattr(model, "ln_final") and hasattr(model, "W_U")
    }


def _with_encoder_columns(
    table: pd.DataFrame, crosscoder: InferenceCrosscoder, statistics: LatentStatistics | None
) -> pd.DataFrame:
    norms = crosscoder.layout.norms(crosscoder.W_enc.detach().T.double()).cpu()
    columns = {f"enc_norm_{name}": norms[:, m].numpy() for m, name in enumerate(crosscoder.layout.names)}
    if statistics is not None:
        # The template share in conversations alone, without BOS and plain text. 0 / 0 is nan.
        counts = statistics.table
        in_conversations = counts[[f"n_active_{group}" for group in _CONVERSATION_GROUPS]].sum(axis=1)
        columns["frac_template"] = (counts["n_active_template"] / in_conversations).to_numpy()
    return table.assign(**columns)


def _effects(
    crosscoder: InferenceCrosscoder,
    pair: HookedModelPair,
    table: pd.DataFrame,
    responses: Responses,
    compared: Sequence[str] | None,
    n_random: int,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Sequence[float]]]:
    """Measure the effects of latents that are specific to a model, and of random latents that are not."""
    specific: Sequence[int] = table.index[table.verdict.isin(["chat_specific", "base_specific"])].tolist()
    others = table[~table.dead.astype(bool) & table.label.isin(["shared", "other"])]
    drawn: Sequence[int] = others.sample(min(n_random, len(others)), random_state=seed).index.tolist()
    measured = latent_effects(crosscoder, pair, responses, [*specific, *drawn], models=compared)
    random = measured.loc[list(drawn), ["kl_change_added", "kl_change_removed"]]
    return measured.loc[list(specific)], {str(name): random[name].tolist() for name in random}
