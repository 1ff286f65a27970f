"""The quantities that the paper reports, for any crosscoder, beside the published numbers of Gemma 2 2B."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.analysis.paper.paper_tables import MSE_PREFIX, PaperTables
from sae_lens_crosscoder.analysis.statistics.artifacts import counts_below, overlap_with_shared
from sae_lens_crosscoder.analysis.statistics.correlations import correlations
from sae_lens_crosscoder.causal.experiment.setups import POOL_SHARE

Value = float | int | str | None
OURS, THEIRS = "this crosscoder", "paper, Gemma 2 2B"
PAPER_CROSSCODERS = ("L1", "BatchTopK", "Kissane et al.")
"""The crosscoders of Gemma 2 2B in the paper: layer 13, 73,728 latents; that of Kissane et al. has 16,384."""
_N_LATENTS = (73_728, 73_728, 16_384)


@dataclass(frozen=True)
class Quantity:
    """A quantity of the paper, and the function that computes it for any crosscoder."""

    section: str
    name: str
    compute: Callable[[PaperTables], Value]
    paper: tuple[Value, Value, Value] = (None, None, None)
    """The published value for each of `PAPER_CROSSCODERS`: None if there is none, a text if the paper gives words."""


def paper_numbers(tables: Mapping[str, PaperTables]) -> pd.DataFrame:
    """Tabulate all quantities: a row per quantity, a column per crosscoder, and the paper's in the last three.

    Columns are pairs: (`OURS`, name) and (`THEIRS`, name). None, or nan, is an unknown number.
    """
    rows = [(quantity.section, quantity.name) for quantity in QUANTITIES]
    index = pd.MultiIndex.from_tuples(rows, names=["section", "quantity"])
    columns: dict[tuple[str, str], list[Value]] = {}
    for name, table in tables.items():
        columns[OURS, name] = [quantity.compute(table) for quantity in QUANTITIES]
    for i, name in enumerate(PAPER_CROSSCODERS):
        columns[THEIRS, name] = [quantity.paper[i] for quantity in QUANTITIES]
    return pd.DataFrame(columns, index=index, dtype=object)


def most_chat_leaning(latents: pd.DataFrame) -> pd.DataFrame:
    """Select the live latents with the highest Delta_norm, as large a share of all as the paper's 3,176."""
    pool = latents.nlargest(round(POOL_SHARE * len(latents)), "delta_norm")
    return pool.loc[~pool["dead"].astype(bool)]


def paper_correlations(latents: pd.DataFrame) -> pd.DataFrame:
    """Compute `correlations` over the paper's two sets of live latents, by the name of the set."""
    live = latents[~latents["dead"].astype(bool)]
    sets = {"chat_only": live[live["label"] == "chat_only"], "most chat-leaning": most_chat_leaning(latents)}
    return pd.concat({name: correlations(chosen) for name, chosen in sets.items()}, names=["latents"])


def mse_quantiles(latents: pd.DataFrame) -> pd.DataFrame:
    """Compute quantiles of the MSE improvement per class and target, over live latents with a value."""
    live = latents[~latents["dead"].astype(bool)]
    rows: list[dict[str, Any]] = []
    for label in ("shared", "chat_only"):
        for column, improvements in live.loc[live["label"] == label].filter(like=MSE_PREFIX).items():
            known = improvements.dropna()
            row = {"class": label, "target": str(column).removeprefix(MSE_PREFIX), "n_latents": len(known)}
            quantiles = {name: float(known.quantile(q)) for name, q in (("q05", 0.05), ("median", 0.5), ("q95", 0.95))}
            rows.append({**row, "frac_improving": float((known > 0).mean()), **quantiles})
    return pd.DataFrame(rows)


def _count_of(label: str) -> Callable[[PaperTables], Value]:
    return lambda tables: int((tables.latents["label"] == label).sum())


def _share_of(label: str) -> Callable[[PaperTables], Value]:
    return lambda tables: float((tables.latents["label"] == label).mean())


def _shares(*counts: int) -> tuple[float, float, float]:
    base, topk, kissane = (n / total for n, total in zip(counts, _N_LATENTS, strict=True))
    return base, topk, kissane


def _fve(model: str) -> Callable[[PaperTables], Value]:
    return lambda tables: tables.manifest["fve"].get(model)


def _n_below(limit: float) -> Callable[[PaperTables], Value]:
    def of(tables: PaperTables) -> int:
        return int(counts_below(tables.latents, [limit], tables.diagnosis.bounds)["n"].iloc[0])

    return of


def _overlap(coverage: float) -> Callable[[PaperTables], Value]:
    return lambda tables: float(overlap_with_shared(tables.latents, [coverage]).iloc[0])


def _correlation(latents: str, nu: str, other: str, kind: str) -> Callable[[PaperTables], Value]:
    return lambda tables: float(paper_correlations(tables.latents).loc[(latents, nu, other), kind])  # pyright: ignore[reportArgumentType]


def _frac_close(tables: PaperTables) -> float:
    """Of live shared latents."""
    latents = tables.latents[~tables.latents["dead"].astype(bool) & tables.latents["cos_sim"].notna()]
    cosine = latents.loc[latents["label"] == "shared", "cos_sim"]
    return float((cosine > 0.9).mean())


def _median_frequency(label: str) -> Callable[[PaperTables], Value]:
    def of(tables: PaperTables) -> float:
        live = tables.latents[~tables.latents["dead"].astype(bool)]
        return float(live.loc[live["label"] == label, "frequency"].median())

    return of


def _template(share: float) -> Callable[[PaperTables], Value]:
    def of(tables: PaperTables) -> float:
        latents = tables.latents
        if "frac_template" not in latents:
            return float("nan")
        known = latents.loc[(latents["label"] == "chat_only") & latents["frac_template"].notna(), "frac_template"]
        return float((known >= share).mean())

    return of


def _median_divergence(tables: PaperTables) -> float:
    pairs = tables.pairs
    return float(pairs.loc[pairs["isolated"], "divergence"].median()) if "divergence" in pairs else float("nan")


def _genuine(tables: PaperTables) -> int:
    latents = tables.latents
    nus = latents.loc[(latents["label"] == "chat_only") & ~latents["dead"].astype(bool)]
    nus = nus[["nu_error", "nu_reconstruction"]].dropna()
    nus = nus.abs() if tables.diagnosis.bounds == "absolute" else nus
    return int(((nus["nu_error"] < NU_ERROR_LIMIT) & (nus["nu_reconstruction"] < NU_RECONSTRUCTION_LIMIT)).sum())


QUANTITIES = (
    Quantity("classes", "base_only", _count_of("base_only"), (1437, 5, 98)),
    Quantity("classes", "chat_only", _count_of("chat_only"), (3176, 134, 265)),
    Quantity("classes", "shared", _count_of("shared"), (53_569, 62_373, 14_652)),
    Quantity("classes", "other", _count_of("other"), (None, None, 1369)),
    Quantity("classes", "base_only, share of all latents", _share_of("base_only"), _shares(1437, 5, 98)),
    Quantity("classes", "chat_only, share of all latents", _share_of("chat_only"), _shares(3176, 134, 265)),
    Quantity("classes", "shared, share of all latents", _share_of("shared"), _shares(53_569, 62_373, 14_652)),
    Quantity("classes", "dead, share of all latents", lambda t: float(t.latents["dead"].mean()), (0.081, None, None)),
    Quantity("reconstruction", "FVE of base", _fve("base"), (0.836, 0.881, None)),
    Quantity("reconstruction", "FVE of chat", _fve("chat"), (0.849, 0.870, None)),
    Quantity("reconstruction", "FVE of both", _fve("pooled"), (0.844, 0.876, None)),
    Quantity("reconstruction", "FVE of chat - base", _fve("difference")),
    Quantity("reconstruction", "L0", lambda t: float(t.manifest["l0"]), (101, 100, None)),
    Quantity("thresholds", "chat_only with both nu below 0.2", _n_below(0.2)),
    Quantity("thresholds", "chat_only with both nu below 0.5", _n_below(0.5)),
    Quantity("thresholds", "chat_only with nu_error < 0.2 and nu_reconstruction < 0.5", _genuine),
    Quantity("overlap", "chat_only in the central 95 % of shared", _overlap(0.95), (0.18, 0.0, 0.177)),
    Quantity("overlap", "chat_only in the central 50 % of shared", _overlap(0.5), (None, None, 0.011)),
    Quantity("cosines", "shared with a cosine above 0.9, share", _frac_close, (0.90, 0.61, None)),
    Quantity("frequencies", "chat_only, median frequency", _median_frequency("chat_only")),
    Quantity("frequencies", "shared, median frequency", _median_frequency("shared")),
    Quantity(
        "template", "chat_only mostly on template tokens, share", _template(np.nextafter(0.5, 1)), (None, 0.40, None)
    ),
    Quantity("template", "chat_only at least a third there, share", _template(1 / 3), (None, 0.67, None)),
    Quantity(
        "correlations",
        "Spearman of nu_reconstruction with frequency, chat_only",
        _correlation("chat_only", "nu_reconstruction", "frequency", "spearman"),
        (0.458, "none", None),
    ),
    Quantity(
        "correlations",
        "Spearman of nu_error with frequency, chat_only",
        _correlation("chat_only", "nu_error", "frequency", "spearman"),
        (0.83, "none", None),
    ),
    Quantity(
        "correlations",
        "Pearson of nu_error with Delta_norm, most chat-leaning",
        _correlation("most chat-leaning", "nu_error", "delta_norm", "pearson"),
        ("limited", "\u22120.73 or \u22120.87", None),
    ),
    Quantity(
        "correlations",
        "Pearson of nu_reconstruction with Delta_norm, most chat-leaning",
        _correlation("most chat-leaning", "nu_reconstruction", "delta_norm", "pearson"),
        ("limited", "\u22120.87 or \u22120.73", None),
    ),
    Quantity("pairs", "pairs with a cosine above 0.9", lambda t: len(t.pairs), (167, None, None)),
    Quantity("pairs", "those that are isolated", lambda t: int(t.pairs["isolated"].sum()), (109, 0, None)),
    Quantity("pairs", "median divergence of isolated pairs", _median_divergence),
)
"""In the order of the report."""
