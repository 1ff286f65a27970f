"""Null runs: how one-sided latents get when nothing differs, and what that says about the ones at hand."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_NO_SPREAD = 1e-6


def q_values(
    table: pd.DataFrame, nulls: Sequence[pd.DataFrame], min_active: int = MIN_ACTIVE
) -> Float[np.ndarray, " d_sae"]:
    """For every latent the expected share of chance among latents at least as one-sided as it.

    One-sided means |Delta_norm - 1/2|. A threshold's false discovery rate is estimated as the share of null latents
    beyond it (with one added, so that a finite null never promises certainty) over the share of latents beyond it,
    as in target-decoy competition; q is the least rate among all thresholds that keep the latent.

    Args:
        table: of `diagnose`.
        nulls: tables of crosscoders that were trained in the same way on pairs in which nothing differs.

    Returns:
        In [0, 1]; nan for latents that fire on fewer than `min_active` tokens, which are left out of the nulls as well.

    >>> real = pd.DataFrame({"delta_norm": [0.95] * 20 + [0.55] * 80, "n_active": 1000})
    >>> null = pd.DataFrame({"delta_norm": [0.56] * 100, "n_active": 1000})
    >>> q_values(real, [null])[[0, -1]].round(2).tolist()
    [0.05, 1.0]
    """
    one_sided = _one_sidedness(table)
    judged = np.flatnonzero(((table.n_active >= min_active) & one_sided.notna()).to_numpy())
    by_chance = np.concatenate([_one_sidedness(null[null.n_active >= min_active]).dropna() for null in nulls])
    if len(by_chance) == 0:
        raise ValueError(
            f"No latent of the null runs fires on {min_active} tokens, so they say nothing about chance: diagnose them "
            "on more tokens, or train them longer."
        )
    if by_chance.max() < _NO_SPREAD:
        raise ValueError(
            "The null runs have a Delta_norm of 1/2 for every latent, as two copies of a model do, so any latent would "
            "seem beyond chance. Use a pair that differs without meaning: NAME+jitter=0.02, or more pre-training."
        )
    q = np.full(len(table), np.nan)
    descending = judged[np.argsort(-one_sided.to_numpy()[judged], kind="stable")]
    scores = one_sided.to_numpy()[descending]
    n_beyond = np.searchsorted(-scores, -scores, side="right")
    n_null_beyond = len(by_chance) - np.searchsorted(np.sort(by_chance), scores)
    rate = (1 + n_null_beyond) / len(by_chance) / (n_beyond / len(judged))
    # A lower threshold that does better keeps the latent too.
    q[descending] = np.minimum(1, np.minimum.accumulate(rate[::-1])[::-1])
    return q


def require_nulls(
    null: pd.DataFrame | Sequence[pd.DataFrame] | None, crosscoder: InferenceCrosscoder
) -> Sequence[pd.DataFrame]:
    """The tables of null runs as a sequence, or a ValueError for one that cannot be compared with the crosscoder."""
    nulls = [] if null is None else [null] if isinstance(null, pd.DataFrame) else list(null)
    metadata = crosscoder.cfg.metadata
    wanted = (crosscoder.cfg.architecture(), crosscoder.cfg.d_sae)
    training: dict[str, Any] = metadata.training_architecture_details or {}
    models = [metadata.model_name, metadata.chat_model_name]
    for table in nulls:
        if "delta_norm" not in table or "n_active" not in table or "architecture" not in table.attrs:
            raise ValueError("A null run is a table of slc.diagnose, whole and with its .attrs: this one is not.")
        found = (table.attrs["architecture"], len(table))
        if found != wanted:
            raise ValueError(
                f"A null run must be trained as the crosscoder is: this one is {found[0]} with {found[1]:,} latents, "
                f"and the crosscoder {wanted[0]} with {wanted[1]:,}. Train it with the same config on the null pair."
            )
        others: dict[str, Any] = table.attrs.get("training") or {}
        differing = sorted(key for key in {*others, *training} if others.get(key) != training.get(key))
        if differing:
            raise ValueError(f"A null run must be trained as the crosscoder is, but this one differs in {differing}.")
        if None not in models and table.attrs["models"] == models:
            raise ValueError(f"This null run is of {' and '.join(models)}, the crosscoder's own pair: that is no null.")
    return nulls


def _one_sidedness(table: pd.DataFrame) -> pd.Series:
    return (table.delta_norm - 0.5).abs()
