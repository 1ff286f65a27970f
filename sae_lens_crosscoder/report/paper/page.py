"""The page of the paper's figures and tables for any crosscoder, beside the published numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from sae_lens_crosscoder.analysis.paper.paper_tables import PaperTables
from sae_lens_crosscoder.report.figures.class_histograms import (
    cosine_histogram,
    frequency_histogram,
    template_histogram,
)
from sae_lens_crosscoder.report.figures.curves import rank_curves, threshold_curves
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import delta_norm_histogram
from sae_lens_crosscoder.report.figures.nu_histograms import (
    mse_improvement_boxes,
    overlap_histogram,
    template_nu_histogram,
)
from sae_lens_crosscoder.report.figures.nu_marginals import nu_marginals
from sae_lens_crosscoder.report.html.cells import significant
from sae_lens_crosscoder.report.html.document import render_figure_page, write_document
from sae_lens_crosscoder.report.paper.numbers import (
    OURS,
    THEIRS,
    most_chat_leaning,
    mse_quantiles,
    paper_correlations,
)

if TYPE_CHECKING:
    import plotly.graph_objects

_MAX_PAIRS = 30


def paper_figures(tables: Mapping[str, PaperTables]) -> dict[str, "plotly.graph_objects.Figure"]:
    """Draw the paper's figures from the tables of `paper_tables`, by file name."""
    latents = {name: paper.latents for name, paper in tables.items()}
    diagnoses = {name: paper.diagnosis for name, paper in tables.items()}
    return {
        "delta_norm": delta_norm_histogram(diagnoses),
        "nu_chat_only": nu_marginals(diagnoses, "chat_only"),
        "nu_shared": nu_marginals(diagnoses, "shared"),
        "thresholds": threshold_curves(diagnoses),
        "overlap": overlap_histogram(latents),
        "cosines": cosine_histogram(latents),
        "frequencies": frequency_histogram(latents),
        "template_shares": template_histogram(latents),
        "nu_by_template_share": template_nu_histogram(latents),
        "ranks": rank_curves({name: most_chat_leaning(table) for name, table in latents.items()}),
        "mse_improvement": mse_improvement_boxes(latents),
    }


def write_paper_page(
    tables: Mapping[str, PaperTables],
    path: str | Path,
    numbers: pd.DataFrame,
    figures: Mapping[str, "plotly.graph_objects.Figure"],
) -> Path:
    """Write one HTML file that opens anywhere, offline, with all figures and numbers.

    Args:
        numbers: as `paper_numbers` makes them.
        figures: as `paper_figures` draws them.
    """
    page = render_figure_page(
        "paper/paper.html",
        "The paper's report for this crosscoder",
        manifests={name: paper.manifest for name, paper in tables.items()},
        figures=figures,
        numbers={section: _shown(numbers.loc[section]) for section in numbers.index.unique("section")},
        correlations={name: _correlations(paper) for name, paper in tables.items()},
        pairs={name: _pairs(paper) for name, paper in tables.items()},
        mse={name: _mse(paper) for name, paper in tables.items()},
        ours=OURS,
        theirs=THEIRS,
        max_pairs=_MAX_PAIRS,
    )
    return write_document(page, path)


def _shown(numbers: pd.DataFrame) -> pd.DataFrame:
    """Format numbers under heads that separate ours from the paper's, without empty columns of the paper."""
    shown = {
        f"{origin}: {name}": [significant(value) for value in numbers[origin, name]]
        for origin, name in numbers.columns
        if origin == OURS or numbers[origin, name].notna().any()
    }
    return pd.DataFrame(shown, index=numbers.index)


def _correlations(tables: PaperTables) -> pd.DataFrame:
    table = paper_correlations(tables.latents)
    return _texts(table.set_axis([f"{nu} with {quantity}, {latents}" for latents, nu, quantity in table.index]))


def _pairs(tables: PaperTables) -> pd.DataFrame:
    pairs = tables.pairs.sort_values("cosine", ascending=False, kind="stable").head(_MAX_PAIRS)
    names = [f"{chat} and {base}" for chat, base in zip(pairs["chat_latent"], pairs["base_latent"], strict=True)]
    columns = ("cosine", "isolated", "divergence", "n_high", "n_only_chat", "n_only_base", "chat_max", "base_max")
    return _texts(pairs.set_axis(names).filter(columns))


def _mse(tables: PaperTables) -> pd.DataFrame:
    quantiles = mse_quantiles(tables.latents)
    targets = [f"{target}, {label}" for target, label in zip(quantiles["target"], quantiles["class"], strict=True)]
    return _texts(quantiles.set_axis(targets).drop(columns=["target", "class"]))


def _texts(frame: pd.DataFrame) -> pd.DataFrame:
    """Format floats with three significant digits, so that small p-values stay readable."""
    floats = frame.select_dtypes("float").columns
    return frame.assign(**{column: [significant(value) for value in frame[column]] for column in floats})
