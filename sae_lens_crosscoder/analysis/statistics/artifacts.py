"""Measures of artifacts among chat-only latents that do not depend on one choice of thresholds.

All take the latent table of `diagnose`. Dead latents and those without the nu in question are left out.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.verdict import NuBounds, validate_bounds
from sae_lens_crosscoder.arguments import validate_arguments

_NUS = ("nu_error", "nu_reconstruction")


@validate_arguments
def overlap_with_shared(
    latents: pd.DataFrame, coverages: Sequence[float] = (0.95, 0.5), column: str = "nu_reconstruction"
) -> pd.Series:
    """Share of chat-only latents whose nu lies inside the central range of the shared latents.

    A nu_reconstruction as high as a shared latent's means that other latents write it into the base model as well:
    Latent Decoupling. In the paper, 18 % of the L1 crosscoder's lie in the central 95 %, and none of BatchTopK's.

    Args:
        latents: the table of `diagnose`.
        coverages: central shares of the shared latents' distribution, each in (0, 1].

    Returns:
        One share per coverage; nan where there are no chat-only or no shared latents.

    >>> table = pd.DataFrame({"label": ["shared"] * 5 + ["chat_only"] * 2, "dead": False})
    >>> table["nu_reconstruction"] = [0.6, 0.8, 1.0, 1.2, 1.4, 0.1, 0.9]
    >>> overlap_with_shared(table).tolist()
    [0.5, 0.5]
    """
    if not all(0 < coverage <= 1 for coverage in coverages):
        raise ValueError(f"coverages={tuple(coverages)} must lie in (0, 1]: they are shares of a distribution.")
    alive = latents[~latents.dead & latents[column].notna()]
    shared, chat_only = (alive.loc[alive.label == name, column] for name in ("shared", "chat_only"))
    shares: dict[float, float] = {}
    for coverage in coverages:
        low, high = shared.quantile((1 - coverage) / 2), shared.quantile((1 + coverage) / 2)
        shares[coverage] = float(chat_only.between(low, high).mean()) if len(shared) else float("nan")
    return pd.Series(shares, name="frac_inside").rename_axis("coverage")


@validate_arguments
def counts_below(
    latents: pd.DataFrame, limits: Sequence[float] | None = None, bounds: NuBounds = "signed"
) -> pd.DataFrame:
    """Count the chat-only latents whose nu_error and nu_reconstruction are both below each limit pi.

    This compares crosscoders at every strictness, not at one that may suit either.

    Args:
        latents: the table of `diagnose`.
        limits: by default 0, 0.01, ..., 1.
        bounds: `absolute` counts a very negative nu against a latent as well; see `verdict`.

    Returns:
        Per limit `n`, and `frac` of the chat-only latents that have both nu; nan where none has.

    >>> table = pd.DataFrame({"label": "chat_only", "dead": False, "nu_error": [0.0, 0.4, 0.1]})
    >>> counts_below(table.assign(nu_reconstruction=[0.2, 0.1, float("nan")]), [0.1, 0.3, 0.5]).n.tolist()
    [0, 1, 2]
    """
    validate_bounds(bounds)
    nus = _with_nus(latents[latents.label == "chat_only"])[list(_NUS)]
    worst = np.sort((nus.abs() if bounds == "absolute" else nus).max(axis=1).to_numpy())
    pi = np.linspace(0, 1, 101) if limits is None else np.asarray(limits, dtype=float)
    n = np.searchsorted(worst, pi, side="left")
    frac = n / len(worst) if len(worst) else np.full(len(pi), np.nan)
    return pd.DataFrame({"n": n, "frac": frac}, index=pd.Index(pi, name="limit"))


@validate_arguments
def rank_overlap(latents: pd.DataFrame) -> pd.DataFrame:
    """Count the latents that nu and Delta_norm have in common among their n best, for every n.

    By nu, the best has the lowest sum of the ranks of nu_error and nu_reconstruction; by Delta_norm, the largest. Where
    Delta_norm is meaningless, as the paper finds for L1 crosscoders, the curve is that of chance.

    Args:
        latents: the rows to rank, such as `table.nlargest(3176, "delta_norm")`. Ties are in the order of the index.

    Returns:
        By n, from 1 to the number of latents that have both nu: `n_common`, `frac_common` of n, and `frac_by_chance`.

    >>> latents = pd.DataFrame({"dead": False, "delta_norm": [1.0, 0.9, 0.8], "nu_error": [0.1, 0.3, 0.2]})
    >>> rank_overlap(latents.assign(nu_reconstruction=latents.nu_error)).n_common.tolist()
    [1, 1, 3]
    """
    ranked = _with_nus(latents).sort_index(kind="stable")
    rank_sum = ranked.nu_error.rank() + ranked.nu_reconstruction.rank()
    # A latent is among the n best of both from the worse of its two places on.
    worse = np.maximum(_places(rank_sum), _places(-ranked.delta_norm))
    n = np.arange(1, len(ranked) + 1)
    n_common = np.bincount(worse, minlength=len(ranked)).cumsum()
    columns = {"n_common": n_common, "frac_common": n_common / n, "frac_by_chance": n / max(1, len(ranked))}
    return pd.DataFrame(columns, index=pd.Index(n, name="n"))


def _with_nus(latents: pd.DataFrame) -> pd.DataFrame:
    return latents[~latents.dead & latents[list(_NUS)].notna().all(axis=1)]


def _places(scores: pd.Series) -> np.ndarray:
    """Rank of each score, from 0."""
    return np.argsort(np.argsort(scores.to_numpy(), kind="stable"))
