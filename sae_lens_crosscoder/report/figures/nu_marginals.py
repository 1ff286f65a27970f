"""The paper's scatter of nu_reconstruction and nu_error, with their histograms at its edges."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import NU_RANGE, add_points, draw_box, thinned
from sae_lens_crosscoder.report.figures.nu_histograms import NU_EDGES
from sae_lens_crosscoder.report.figures.panels import (
    count,
    panel_layout,
    panel_places,
    panel_text,
    panel_title,
    style,
    validate_tables,
)
from sae_lens_crosscoder.report.html.colours import COLOURS

if TYPE_CHECKING:
    import plotly.graph_objects

_MAIN, _MARGIN, _INSET, _HEADER, _FOOTER, _LEGEND = 360, 64, 6, 64, 58, 60
"""Heights in pixels: the scatter, the histogram on top, between both, title, axis labels, legend."""
_COLUMN_GAP, _FRAC_MAIN = 0.09, 0.84
"""Shares of the width: the gap between columns, and the scatter in its column."""


def nu_marginals(
    diagnoses: Mapping[str, Diagnosis], label: Literal["chat_only", "shared"]
) -> "plotly.graph_objects.Figure":
    """Plot nu_error against nu_reconstruction of a class, with histograms at the edges.

    Chat-only latents have the colour of their verdict, and those in the box "genuine" are no artifact. The histograms
    count all latents within the axes, even if a large cloud is thinned. The title counts the others.

    Args:
        diagnoses: by crosscoder name.
    """
    from plotly.subplots import make_subplots

    tables = {name: diagnosis.latents for name, diagnosis in diagnoses.items()}
    validate_tables(tables, ("delta_norm", "label", "verdict", "dead", "n_active"))
    places = panel_places(len(tables))
    n_rows, n_columns = places[-1][0], min(2, len(tables))
    specs: list[Any] = [[{}, None] * n_columns, [{}, {}] * n_columns] * n_rows
    figure = make_subplots(rows=2 * n_rows, cols=2 * n_columns, specs=specs)
    drawn = n_rows * (_HEADER + _MARGIN + _INSET + _MAIN + _FOOTER) - _HEADER - _FOOTER
    in_legend: set[str] = set()
    for (row, col), (name, diagnosis) in zip(places, diagnoses.items(), strict=True):
        _place(figure, row, col, n_columns, drawn, diagnosis.nu_columns)
        _add_panel(figure, 2 * row - 1, 2 * col - 1, name, diagnosis, label, in_legend)
    style(figure, **panel_layout(drawn, _HEADER, _FOOTER, _LEGEND), bargap=0.08)
    return figure


def _place(figure: Any, row: int, col: int, n_columns: int, drawn: int, nus: tuple[str, str]) -> None:
    """Place a scatter and its two histograms, because plotly's grid has only one spacing."""
    width = (1 - _COLUMN_GAP * (n_columns - 1)) / n_columns
    left = (col - 1) * (width + _COLUMN_GAP)
    main_x, side_x = [left, left + _FRAC_MAIN * width], [left + (_FRAC_MAIN + 0.015) * width, left + width]
    top = (row - 1) * (_HEADER + _MARGIN + _INSET + _MAIN + _FOOTER)
    edges = (top, top + _MARGIN, top + _MARGIN + _INSET, top + _MARGIN + _INSET + _MAIN)
    y = [max(0.0, 1 - edge / drawn) for edge in edges]
    above, main, side = (
        figure.get_subplot(r, c) for r, c in ((2 * row - 1, 2 * col - 1), (2 * row, 2 * col - 1), (2 * row, 2 * col))
    )
    above.xaxis.update(domain=main_x, matches=main.yaxis.anchor, showticklabels=False)
    above.yaxis.update(domain=[y[1], y[0]])
    nu = {"range": NU_RANGE, "dtick": 0.5, "zeroline": False}
    main.xaxis.update(domain=main_x, title={"text": nus[0], "standoff": 8}, **nu)
    main.yaxis.update(domain=[y[3], y[2]], title={"text": nus[1], "standoff": 4}, **nu)
    side.xaxis.update(domain=side_x)
    side.yaxis.update(domain=[y[3], y[2]], matches=main.xaxis.anchor, showticklabels=False)


def _add_panel(
    figure: Any, row: int, col: int, name: str, diagnosis: Diagnosis, label: str, in_legend: set[str]
) -> None:
    """Draw one block; row and column locate its upper histogram in plotly's grid."""
    table, nus = diagnosis.latents, diagnosis.nu_columns
    live = table.loc[(table["label"] == label) & ~table["dead"].astype(bool)]
    latents = live.dropna(subset=[*nus])
    inside = (latents[[*nus]].ge(NU_RANGE[0]) & latents[[*nus]].le(NU_RANGE[1])).all(axis=1)
    n, n_drawn = len(latents), len(thinned(latents))
    drawn = f"{count(n)} drawn" if n == n_drawn else f"{n_drawn:,} of {n:,} drawn"
    left_out = f"{count(len(live) - n)} without nu, {count(int((~inside).sum()))} beyond the axes"
    panel_title(figure, row, col, name, [f"{label}: {drawn}, {left_out}"], shift=6)
    if label == "shared":
        add_points(figure, row + 1, col, thinned(latents), "shared", in_legend, nus)
    else:
        for verdict, group in latents.groupby("verdict", dropna=False):
            add_points(figure, row + 1, col, group, str(verdict), in_legend, nus)
        draw_box(figure, row + 1, col, diagnosis)
    if latents.empty:
        panel_text(figure, row + 1, col, f"live {label} latents with both nu: none")
    _add_margin(figure, row, col, latents.loc[inside, nus[0]], label)
    _add_margin(figure, row + 1, col + 1, latents.loc[inside, nus[1]], label)


def _add_margin(figure: Any, row: int, col: int, values: pd.Series, label: str) -> None:
    """Draw the histogram above a scatter or, in the second column of its block, beside it."""
    import plotly.graph_objects as go

    n, _ = np.histogram(values.to_numpy(dtype=float), bins=NU_EDGES)
    middles = (NU_EDGES[:-1] + NU_EDGES[1:]) / 2
    is_above = row % 2 == 1
    bars = go.Bar(
        x=middles if is_above else n,
        y=n if is_above else middles,
        orientation="v" if is_above else "h",
        marker={"color": COLOURS[label], "line": {"width": 0}},
        name=label,
        showlegend=False,
        hovertemplate=("%{y:,} latents" if is_above else "%{x:,} latents") + "<extra></extra>",
    )
    figure.add_trace(bars, row=row, col=col)
    counts_axis = figure.get_subplot(row, col).yaxis if is_above else figure.get_subplot(row, col).xaxis
    # Only the highest count, because a 0 would overlap the last number of the scatter's axis.
    most = int(n.max())
    counts_axis.update(tickvals=[most] if most else [], ticktext=[f"{most:,}"], range=[0, 1.08 * max(1, most)])
