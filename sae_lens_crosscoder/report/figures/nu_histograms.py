"""Histograms of nu, compared with shared latents and by template share, and the MSE improvement."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.paper.paper_tables import MSE_PREFIX
from sae_lens_crosscoder.analysis.statistics.artifacts import overlap_with_shared
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import NU_RANGE
from sae_lens_crosscoder.report.figures.panels import (
    count,
    count_axis,
    panel_grid,
    panel_places,
    panel_text,
    panel_title,
    style,
    validate_tables,
)
from sae_lens_crosscoder.report.html.colours import COLOURS

if TYPE_CHECKING:
    import plotly.graph_objects

NU_EDGES = np.linspace(*NU_RANGE, 41)
"""Bins of every histogram of nu."""
BANDS = {
    "below a third on the template": (0.0, 1 / 3, "#f0b48c"),
    "a third to a half": (1 / 3, 0.5, "#d9601a"),
    "half or more": (0.5, float("inf"), "#7a2f05"),
}
"""The paper's bands of template share: lower end, upper end, colour."""
UNKNOWN_BAND = "template share unknown"
TARGETS = tuple(
    f"{target}_{model}" for target in ("activation", "reconstruction", "error") for model in ("base", "chat")
)
_COVERAGES = (0.95, 0.5)


def overlap_histogram(tables: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot nu_reconstruction of live chat-only over shared latents, whose central 95 % and 50 % are shaded.

    Args:
        tables: tables of `diagnose` by crosscoder name.
    """
    validate_tables(tables, ("label", "dead", "nu_reconstruction"))
    places = panel_places(len(tables))
    figure, layout = panel_grid(places[-1][0], min(2, len(tables)), header=90)
    for (row, col), (name, table) in zip(places, tables.items(), strict=True):
        _add_overlap(figure, row, col, name, table)
    figure.update_xaxes(range=NU_RANGE, dtick=0.5, zeroline=False)
    figure.update_xaxes(title={"text": "nu_reconstruction", "standoff": 8})
    figure.update_yaxes(rangemode="tozero", zeroline=False, title={"text": "share of the class", "standoff": 6})
    style(figure, **layout, barmode="overlay", bargap=0)
    return figure


def template_nu_histogram(tables: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot both nu of live chat-only latents, coloured by their share of template tokens.

    Args:
        tables: tables of `diagnose`, with the column `frac_template` of `latent_statistics` where it is known.
    """
    columns = ("nu_error", "nu_reconstruction")
    validate_tables(tables, ("label", "dead", *columns))
    figure, layout = panel_grid(len(tables), 2)
    in_legend: set[str] = set()
    for row, (name, table) in enumerate(tables.items(), start=1):
        chat_only = table[(table["label"] == "chat_only") & ~table["dead"].astype(bool)]
        for col, column in enumerate(columns, start=1):
            known = chat_only[chat_only[column].notna()]
            panel_title(figure, row, col, name, [f"{column}: {_drawn(known[column], chat_only)}"], shift=6)
            for band, bars in _by_band(known).items():
                _add_band(figure, row, col, bars[column], band, in_legend)
            if known.empty:
                panel_text(figure, row, col, f"live chat_only latents with {column}: none")
            count_axis(figure, row, col, int(np.histogram(known[column], bins=NU_EDGES)[0].max()))
            figure.update_xaxes(title={"text": column, "standoff": 8}, row=row, col=col)
    figure.update_xaxes(range=NU_RANGE, dtick=0.5, zeroline=False)
    figure.update_yaxes(title={"text": "latents", "standoff": 6})
    style(figure, **layout, barmode="stack", bargap=0.08)
    return figure


def mse_improvement_boxes(tables: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot the share by which a live latent's scaled direction reduces the error of predicting each target.

    Boxes reach from the lower to the upper quartile, whiskers from 5 % to 95 %, of the latents with an improvement on
    held-out data. The others are counted in the panel's title, because the axis is logarithmic.

    Args:
        tables: tables of `paper_tables` by crosscoder name.
    """
    columns = [MSE_PREFIX + target for target in TARGETS]
    validate_tables(tables, ("label", "dead", *columns))
    places = panel_places(len(tables))
    figure, layout = panel_grid(places[-1][0], min(2, len(tables)), footer=110)
    in_legend: set[str] = set()
    for (row, col), (name, table) in zip(places, tables.items(), strict=True):
        live = table[~table["dead"].astype(bool)]
        lines: list[str] = []
        for label in ("shared", "chat_only"):
            improvements = live.loc[live["label"] == label, columns]
            n_known, n_worse = int(improvements.notna().any(axis=1).sum()), int((improvements <= 0).any(axis=1).sum())
            lines.append(f"{label}: {count(n_known)} judged, {count(n_worse)} at 0 or below for some target")
            _add_boxes(figure, row, col, improvements, label, in_legend)
        panel_title(figure, row, col, name, lines, shift=6)
        if not (live.loc[live["label"].isin(["shared", "chat_only"]), columns] > 0).any(axis=None):
            panel_text(figure, row, col, "shared and chat_only latents that improve anything: none")
            figure.update_yaxes(range=[-6, 0], row=row, col=col)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=_target_texts(), tickangle=-40)
    figure.update_yaxes(type="log", dtick=1, exponentformat="power", title={"text": "MSE improvement", "standoff": 6})
    style(figure, **layout, boxmode="group")
    return figure


def _add_overlap(figure: Any, row: int, col: int, name: str, table: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    live = table[~table["dead"].astype(bool)]
    lines: list[str] = []
    for label, opacity in (("shared", 0.6), ("chat_only", 0.75)):
        latents = live[live["label"] == label]
        values = latents["nu_reconstruction"].dropna()
        lines.append(f"{label}: {_drawn(values, latents)}")
        n, _ = np.histogram(values.to_numpy(dtype=float), bins=NU_EDGES)
        bars = go.Bar(
            x=(NU_EDGES[:-1] + NU_EDGES[1:]) / 2,
            y=n / max(1, len(values)),
            marker={"color": COLOURS[label], "opacity": opacity, "line": {"width": 0}},
            name=label,
            legendgroup=label,
            showlegend=(row, col) == (1, 1),
            customdata=n,
            hovertemplate=f"{label}: %{{customdata:,}} latents, %{{y:.3f}} of the class<extra></extra>",
        )
        figure.add_trace(bars, row=row, col=col)
        if values.empty:
            y = 0.75 if label == "shared" else 0.6
            panel_text(figure, row, col, f"live {label} latents with nu_reconstruction: none", y=y)
    shared = live.loc[live["label"] == "shared", "nu_reconstruction"].dropna()
    for coverage in _COVERAGES if len(shared) else ():
        ends = shared.quantile([(1 - coverage) / 2, (1 + coverage) / 2]).clip(*NU_RANGE)
        place = {"x0": float(ends.iloc[0]), "x1": float(ends.iloc[1]), "row": row, "col": col}
        figure.add_vrect(**place, fillcolor="rgba(47,111,181,0.12)", line_width=0, layer="below")
    inside = overlap_with_shared(table, _COVERAGES)
    shares = [f"in its central {100 * c:.0f} %: {100 * s:.1f} %" for c, s in zip(_COVERAGES, inside, strict=True)]
    lines.append("chat_only " + ", ".join(shares) if inside.notna().all() else "no overlap to measure")
    panel_title(figure, row, col, name, lines, shift=6)


def _by_band(latents: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Group latents by template share."""
    share = latents["frac_template"] if "frac_template" in latents else pd.Series(np.nan, latents.index)
    bands = {band: latents[(share >= low) & (share < high)] for band, (low, high, _) in BANDS.items()}
    return {**bands, UNKNOWN_BAND: latents[share.isna()]}


def _add_band(figure: Any, row: int, col: int, values: pd.Series, band: str, in_legend: set[str]) -> None:
    import plotly.graph_objects as go

    if values.empty:
        return
    n, _ = np.histogram(values.to_numpy(dtype=float), bins=NU_EDGES)
    bars = go.Bar(
        x=(NU_EDGES[:-1] + NU_EDGES[1:]) / 2,
        y=n,
        marker={"color": BANDS[band][2] if band in BANDS else COLOURS["shared"], "line": {"width": 0}},
        name=band,
        legendgroup=band,
        showlegend=band not in in_legend,
        hovertemplate=f"{band}: %{{y:,}} latents<extra></extra>",
    )
    in_legend.add(band)
    figure.add_trace(bars, row=row, col=col)


def _add_boxes(figure: Any, row: int, col: int, improvements: pd.DataFrame, label: str, in_legend: set[str]) -> None:
    import plotly.graph_objects as go

    quantiles = improvements.where(improvements > 0).quantile([0.05, 0.25, 0.5, 0.75, 0.95])
    if not quantiles.notna().any(axis=None):
        return
    low, q1, median, q3, high = quantiles.to_numpy()
    boxes = go.Box(
        x=_target_texts(),
        lowerfence=low,
        q1=q1,
        median=median,
        q3=q3,
        upperfence=high,
        marker={"color": COLOURS[label]},
        line={"width": 1.5},
        name=label,
        legendgroup=label,
        offsetgroup=label,
        showlegend=label not in in_legend,
    )
    in_legend.add(label)
    figure.add_trace(boxes, row=row, col=col)


def _target_texts() -> list[str]:
    return [target.replace("_", " of ") for target in TARGETS]


def _drawn(values: pd.Series, latents: pd.DataFrame) -> str:
    """Count the latents in a histogram of nu, and those left out by reason."""
    n_beyond = int((~values.between(*NU_RANGE)).sum())
    missing = f"{count(len(latents) - len(values))} without nu"
    return f"{count(len(values) - n_beyond)} drawn, {missing}, {count(n_beyond)} beyond the axis"
