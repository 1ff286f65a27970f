"""Correlations of nu with frequency and Delta_norm."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

from sae_lens_crosscoder.arguments import validate_arguments

_NUS = ("nu_error", "nu_reconstruction")
_OTHERS = ("frequency", "delta_norm")


@validate_arguments
def correlations(latents: pd.DataFrame, nus: Sequence[str] = _NUS, others: Sequence[str] = _OTHERS) -> pd.DataFrame:
    """Pearson and Spearman correlation of every nu with every other column, over the given latents.

    Choose the latents first: the paper's are the chat-only ones, or those that lean most to the chat model.

    Args:
        latents: the table of `diagnose`, or some of its rows.

    Returns:
        One row per pair, with `n_latents` of which both are known, `pearson`, `spearman`, and two-sided p-values for
        independent latents: `pearson_p` exact for normal columns, `spearman_p` by Student's t, which is good above
        about 10 latents. Below 3 latents, or if a column is constant, nothing is defined and all four are nan.

    Raises:
        ValueError: for a column that is not in the table.

    >>> table = pd.DataFrame({"nu_error": [0.1, 0.2, 0.9], "frequency": [1.0, 2.0, 3.0]})
    >>> correlations(table, ["nu_error"], ["frequency"]).spearman.round(6).tolist()
    [1.0]
    """
    missing = [column for column in (*nus, *others) if column not in latents]
    if missing:
        raise ValueError(
            f"latents has no column {', '.join(missing)}. Pass the table of diagnose, or other column names."
        )
    rows = {(nu, other): _correlation(latents[[nu, other]]) for nu in nus for other in others}
    table = pd.DataFrame.from_dict(rows, orient="index")
    table.index = pd.MultiIndex.from_tuples(rows, names=["nu", "with"])
    return table


def _correlation(columns: pd.DataFrame) -> dict[str, int | float]:
    from scipy.stats import pearsonr  # takes most of a second, and few need it

    known = columns.dropna().astype(float)
    is_defined = len(known) >= 3 and bool((known.nunique() > 1).all())
    found: dict[str, int | float] = {"n_latents": len(known)}
    for name, values in (("pearson", known), ("spearman", known.rank())):
        result: Any = pearsonr(*values.to_numpy().T) if is_defined else None
        found[name] = float(result.statistic) if is_defined else float("nan")
        found[f"{name}_p"] = float(result.pvalue) if is_defined else float("nan")
    return found
