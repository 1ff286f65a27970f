"""A first look at two models: where and on what they differ, and which hook to train a crosscoder at."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lens_crosscoder.activations.dominant_tokens import MAX_NORM_RATIO, NormLimits, validate_max_norm_ratio
from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.activations.pair_check import validate_two_models
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.localisation.changed_prompts import ChangedPrompts, changed_prompts
from sae_lens_crosscoder.causal.localisation.first_look import EMPTY_DIRECTIONS, FirstLook
from sae_lens_crosscoder.causal.localisation.hooks import residual_hooks
from sae_lens_crosscoder.causal.localisation.localisation import Localisation
from sae_lens_crosscoder.causal.localisation.locate import locate_difference
from sae_lens_crosscoder.causal.localisation.recommendation import recommend
from sae_lens_crosscoder.causal.localisation.tables import group_table, hook_table, position_table, prompt_table
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.data.prompts import Messages, load_prompts, tokenize_prompts
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.workflows.look_directions import look_at_directions

_MIN_PROMPTS_OF_CONTRAST = 4


@validate_arguments
def first_look(
    pair: HookedModelPair,
    data: EvalData | str | Path | Sequence[str | Messages],
    *,
    hook_names: Sequence[str] | None = None,
    every: int | None = None,
    max_norm_ratio: float | None = MAX_NORM_RATIO,
    n_components: int = 4,
    n_positions: int = 20,
    n_resamples: int = 1000,
    batch_size: int = 8,
    seed: int = 0,
) -> FirstLook:
    """Find where and on what two models differ, without a crosscoder.

    Both models run once on the prompts, and base continues from each hook with chat's activation: the share of the KL
    that this brings back says from which hook on the change is written. The first hook with 0.99 of the best share is
    recommended.

    Args:
        data: prompts on which the models should differ, and some on which they should not: a file for `load_prompts`,
            texts or conversations (the chat template is applied), or `EvalData` with tokens, whose mask ends at the
            token that predicts the answer's first one.
        hook_names: hooks on the residual stream, in order; by default after each block, or each n-th of more than 32.
        every: take each n-th block.
        max_norm_ratio: tokens with a norm above this many times the median do not count in sizes and components.
        n_components: principal components of the difference.
        n_positions: number of the most changed positions to show.
        n_resamples: bootstrap resamples of the changed prompts.
        batch_size: prompts per forward pass.

    Raises:
        ValueError: for identical models, models that share parameters or differ in width, or data without tokens.
    """
    validate_max_norm_ratio(max_norm_ratio)
    pair.validate_two("first_look")
    validate_two_models(pair)
    inputs = _inputs(pair, data, batch_size)
    tokens, token_mask = (part.cpu() for part in inputs.contexts)
    hook_names = residual_hooks(pair, every) if hook_names is None else tuple(hook_names)
    located = locate_difference(pair, tokens, token_mask, hook_names, n_shown=n_positions, batch_size=inputs.batch_size)
    _validate_not_identical(located)
    changed = changed_prompts(located.kl_last)
    recommendation = recommend(located, changed, n_resamples=n_resamples, seed=seed)
    special = _special_tokens(pair, tokens)
    ordinary = _ordinary(located, max_norm_ratio) & ~special
    chosen = dict.fromkeys([recommendation.hook_name, recommendation.half_hook])
    directions, vectors = EMPTY_DIRECTIONS, torch.zeros(0, 0)
    if recommendation.hook_name is not None:
        directions, vectors = look_at_directions(
            replace(inputs, token_mask=token_mask & ~special),
            located,
            changed,
            [name for name in chosen if name is not None],
            n_components=n_components,
            max_norm_ratio=max_norm_ratio,
        )
    return FirstLook(
        recommendation=recommendation,
        hooks=hook_table(located, changed, ordinary, special, n_resamples=n_resamples, seed=seed),
        prompts=prompt_table(pair, tokens, located, changed),
        groups=group_table(located, inputs.groups),
        positions=position_table(pair, tokens, located, inputs.groups, n_positions),
        directions=directions,
        vectors=vectors,
        contrast=_contrast(tokens, located, changed),
        manifest=_manifest(pair, located, changed, n_resamples, max_norm_ratio, seed),
    )


def _inputs(pair: HookedModelPair, data: Any, batch_size: int) -> EvalData:
    """The prompts as evaluation data."""
    if isinstance(data, EvalData):
        if data.pair is not None and data.pair is not pair:
            raise ValueError("data has another pair than the one to look at. Pass data.pair, or data without a pair.")
        tokens, token_mask = data.contexts
        return replace(data, pair=pair, activations=None, tokens=tokens, token_mask=token_mask)
    prompts = load_prompts(data) if isinstance(data, str | Path) else data
    tokenized = tokenize_prompts(prompts, pair.tokenizer)
    fields: dict[str, Any] = tokenized._asdict()
    return EvalData(pair=pair, batch_size=batch_size, **fields)


def _validate_not_identical(located: Localisation) -> None:
    if not bool(located.difference.nan_to_num(0).any()) and not bool(located.kl.nan_to_num(0).any()):
        raise ValueError(
            f"The models are identical on all {int(located.kl.isfinite().sum())} tokens: activations and predictions "
            "are equal at every hook. Check that the chat model is the tuned one."
        )


def _special_tokens(pair: HookedModelPair, tokens: Tensor) -> Bool[Tensor, "prompt pos"]:
    ids = list(getattr(pair.tokenizer, "all_special_ids", ()))
    return torch.isin(tokens, torch.tensor(ids, dtype=tokens.dtype))


def _ordinary(located: Localisation, max_norm_ratio: float | None) -> Bool[Tensor, "hook prompt pos"]:
    """The tokens that do not dominate at a hook."""
    used = located.kl.isfinite().expand(located.norms.shape[:-1])
    if max_norm_ratio is None:
        return used
    layout = StackedLayout((located.last_activations.shape[-1],) * 2)
    limits = [NormLimits.measured(layout, norms[used[0]], max_norm_ratio) for norms in located.norms]
    ordinary = [limit.ordinary_norms(norms) for limit, norms in zip(limits, located.norms, strict=True)]
    return used & torch.stack(ordinary)


def _contrast(tokens: Tensor, located: Localisation, changed: ChangedPrompts) -> Contrast | None:
    """The changed prompts against the others."""
    n_changed = int(changed.changed.sum())
    if min(n_changed, len(tokens) - n_changed) < _MIN_PROMPTS_OF_CONTRAST:
        return None
    rows = [tokens[i, : last + 1] for i, last in enumerate(located.last.tolist())]
    positive, negative = (
        [rows[i] for i in mask.nonzero()[:, 0].tolist()] for mask in (changed.changed, ~changed.changed)
    )
    return Contrast.from_tokens("changed", positive, negative)


def _manifest(
    pair: HookedModelPair,
    located: Localisation,
    changed: ChangedPrompts,
    n_resamples: int,
    max_norm_ratio: float | None,
    seed: int,
) -> dict[str, Any]:
    return {
        "models": list(pair.model_names or ()),
        "n_prompts": len(located.kl),
        "n_tokens": int(located.kl.isfinite().sum()),
        "n_changed": int(changed.changed.sum()),
        "kl_nats_last": float(located.kl_last.mean()),
        "kl_nats_tokens": float(located.kl.nanmean()),
        "split": changed.description,
        "max_norm_ratio": max_norm_ratio,
        "n_resamples": n_resamples,
        "seed": seed,
    }
