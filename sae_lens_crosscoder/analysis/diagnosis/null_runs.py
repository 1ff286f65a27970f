"""q-values from null runs, which show how one-sided latents get when the models do not differ."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.manifest import JITTERED, trained_models
from sae_lens_crosscoder.analysis.diagnosis.own_probe import with_own_probe
from sae_lens_crosscoder.analysis.diagnosis.verdict import (
    MIN_ACTIVE,
    NU_ERROR_LIMIT,
    NU_RECONSTRUCTION_LIMIT,
    judging_nu,
    nu_kind_of,
)
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_NO_SPREAD = 1e-6


@runtime_checkable
class NullRun(Protocol):
    """A reading of a crosscoder of a null pair, whose manifest names the kind of pair as `null_kind`."""

    @property
    def manifest(self) -> dict[str, Any]: ...


Run = TypeVar("Run", bound=NullRun)


def null_kinds(nulls: Sequence[NullRun]) -> list[str]:
    """Kinds of null pairs among the runs, in order of appearance; runs without a kind are one kind, named ''."""
    return list(dict.fromkeys(run.manifest.get("null_kind") or "" for run in nulls))


def jitter_caveat(kinds: Sequence[str]) -> str:
    """Words for a conclusion without null runs of models that were trained; none for others."""
    return "of jittered weights alone, which can understate chance" if list(kinds) == [JITTERED] else ""


def largest_over_kinds(
    nulls: Sequence[Run], q_of: Callable[[Sequence[Run]], Float[np.ndarray, " d_sae"]]
) -> Float[np.ndarray, " d_sae"]:
    """The largest q of every latent over the kinds of null pairs; runs of one kind are pooled.

    Kinds differ in how far chance goes. Pooled, runs of a mild kind would thin out those of a wild one, and enough of
    them would make any q small. The largest holds if chance in the pair at hand goes no further than in one of the
    kinds.

    Args:
        q_of: q of every latent against runs of one kind.
    """
    kinds = null_kinds(nulls)
    of_kinds = [q_of([run for run in nulls if (run.manifest.get("null_kind") or "") == kind]) for kind in kinds]
    return np.max(of_kinds, axis=0)  # nan where not judged, which is the same against all kinds


def q_values(
    table: pd.DataFrame, nulls: Sequence[pd.DataFrame], min_active: int = MIN_ACTIVE
) -> Float[np.ndarray, " d_sae"]:
    """False discovery rate of the latents at least as one-sided as each latent.

    One-sided means |Delta_norm - 1/2|. A threshold's false discovery rate is estimated as the share of null latents
    beyond it (with one added, so that a finite null never promises certainty) over the share of latents beyond it,
    as in target-decoy competition; q is the least rate among all thresholds that keep the latent.

    Exclusive latents are one-sided by construction, on the null pair too. They are compared with the null runs'
    exclusive latents, by how far the larger of both nu, each over its limit, stays below 1.

    Args:
        table: latents of `diagnose`.
        nulls: latent tables of crosscoders that were trained in the same way on pairs that do not differ, all of one
            kind; see `largest_over_kinds`.

    Returns:
        In [0, 1]; nan for latents that fire on fewer than `min_active` tokens, which are left out of the nulls as well.

    >>> real = pd.DataFrame({"delta_norm": [0.95] * 20 + [0.55] * 80, "n_active": 1000})
    >>> null = pd.DataFrame({"delta_norm": [0.56] * 100, "n_active": 1000})
    >>> q_values(real, [null])[[0, -1]].round(2).tolist()
    [0.05, 1.0]
    """
    exclusive = _exclusive(table)
    q = np.full(len(table), np.nan)
    judged = (table.n_active >= min_active).to_numpy()
    scores = _one_sidedness(table)
    learned = np.flatnonzero(judged & ~exclusive & scores.notna().to_numpy())
    by_chance = np.concatenate(
        [_one_sidedness(null[(null.n_active >= min_active) & ~_exclusive(null)]).dropna() for null in nulls]
    )
    _validate_chance(by_chance, min_active)
    q[learned] = discovery_rates(scores.to_numpy()[learned], by_chance)
    if exclusive.any():
        rates = discovery_rates(
            _margins(table, min_active)[exclusive],
            np.concatenate([_margins(null, min_active)[_exclusive(null)] for null in nulls]),
        )
        q[exclusive] = np.where(judged[exclusive], rates, np.nan)
    return q


def discovery_rates(
    scores: Float[np.ndarray, " latents"], by_chance: Float[np.ndarray, " null_latents"]
) -> Float[np.ndarray, " latents"]:
    """q of every score, of which larger ones are discoveries, given the scores of latents that are none."""
    order = np.argsort(-scores, kind="stable")
    descending = scores[order]
    n_beyond = np.searchsorted(-descending, -descending, side="right")
    n_null_beyond = len(by_chance) - np.searchsorted(np.sort(by_chance), descending)
    rate = (1 + n_null_beyond) / len(by_chance) / (n_beyond / len(scores))
    q = np.empty(len(scores))
    # A lower threshold that does better keeps the latent too.
    q[order] = np.minimum(1, np.minimum.accumulate(rate[::-1])[::-1])
    return q


def _validate_chance(by_chance: Float[np.ndarray, " null_latents"], min_active: int) -> None:
    if len(by_chance) == 0:
        raise ValueError(
            f"No latent of the null runs fires on {min_active} tokens, so they give no q-values. Diagnose them on more "
            "tokens, or train them longer."
        )
    if by_chance.max() < _NO_SPREAD:
        raise ValueError(
            "All latents of the null runs have a Delta_norm of 1/2, as for two copies of one model. Use a pair that "
            "differs by chance: NAME+jitter=0.02, or more pre-training."
        )


def validate_nulls(
    null: Diagnosis | Sequence[Diagnosis] | None, crosscoder: InferenceCrosscoder
) -> Sequence[Diagnosis]:
    """Null runs as a sequence; a ValueError for one that was trained differently than the crosscoder."""
    nulls = [] if null is None else [null] if isinstance(null, Diagnosis) else list(null)
    for run in nulls:
        if "architecture" not in run.manifest or not {"delta_norm", "n_active"} <= set(run.latents):
            raise ValueError("A null run must be the Diagnosis that diagnose returns, with its manifest.")
        validate_trained_alike(run.manifest, len(run.latents), crosscoder)
    return nulls


def validate_trained_alike(manifest: Mapping[str, Any], n_latents: int, crosscoder: InferenceCrosscoder) -> None:
    """Raise a ValueError if a null run, was trained differently than the crosscoder, or on the same pair."""
    metadata = crosscoder.cfg.metadata
    expected = (crosscoder.cfg.architecture(), crosscoder.cfg.d_sae)
    training: dict[str, Any] = metadata.training_architecture_details or {}
    partition = None if crosscoder.cfg.partition is None else asdict(crosscoder.cfg.partition)
    models = trained_models(crosscoder)
    trained = (manifest["architecture"], n_latents)
    if trained != expected:
        raise ValueError(
            f"The null run is a {trained[0]} with {trained[1]:,} latents, but the crosscoder is a {expected[0]} "
            f"with {expected[1]:,}. Train the null run with the same config on the null pair."
        )
    if manifest.get("partition") != partition:
        raise ValueError(
            f"The null run has the partition {manifest.get('partition')}, but the crosscoder has {partition}. Train "
            "the null run with the same config on the null pair."
        )
    null_training: dict[str, Any] = manifest.get("training") or {}
    keys = {*null_training, *training}
    if differing := sorted(key for key in keys if null_training.get(key) != training.get(key)):
        raise ValueError(
            f"The null run was trained with other settings than the crosscoder: {differing}. Train it with the "
            "same config on the null pair."
        )
    if None not in models and manifest["models"] == models:
        raise ValueError(
            f"The null run was trained on {' and '.join(map(str, models))}, like the crosscoder. Use a pair of models "
            "that do not differ, such as NAME and NAME+jitter=0.02."
        )


def _exclusive(table: pd.DataFrame) -> Bool[np.ndarray, " d_sae"]:
    if "exclusive" not in table:
        return np.zeros(len(table), dtype=bool)
    return table.exclusive.to_numpy(dtype=bool)


def _margins(table: pd.DataFrame, min_active: int) -> Float[np.ndarray, " d_sae"]:
    """How clearly both nu acquit a latent, minus infinity where they cannot be judged."""
    own, (nu_error, nu_reconstruction) = with_own_probe(table), judging_nu(nu_kind_of(table))
    scaled = [own[nu_error] / NU_ERROR_LIMIT, own[nu_reconstruction] / NU_RECONSTRUCTION_LIMIT]
    worst = pd.concat(scaled, axis=1).max(axis=1, skipna=False)
    return (-worst).where(table.n_active >= min_active).fillna(-np.inf).to_numpy()


def _one_sidedness(table: pd.DataFrame) -> pd.Series:
    return (table.delta_norm - 0.5).abs()
