"""Curves over all choices of a threshold or a rank: one line per crosscoder."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.analysis.statistics.artifacts import counts_below, rank_overlap
from sae_lens_crosscoder.report.figures.panels import (
    LINES,
    count,
    count_axis,
    panel_grid,
    panel_text,
    panel_title,
    style,
    validate_tables,
)
from sae_lens_crosscoder.report.html.inert import inert

if TYPE_CHECKING:
    import plotly.graph_objects


def threshold_curves(diagnoses: Mapping[str, Diagnosis]) -> "plotly.graph_objects.Figure":
    """Plot the number and the share of chat-only latents with both nu below pi, for every limit pi.

    Args:
        diagnoses: by crosscoder name; each is counted by the `bounds` in its manifest.
    """
    tables = {name: diagnosis.latents for name, diagnosis in diagnoses.items()}
    validate_tables(tables, ("label", "dead", "nu_error", "nu_reconstruction"))
    figure, layout = panel_grid(1, 2, header=36)
    most = 0
    for i, (name, diagnosis) in enumerate(diagnoses.items()):
        curve = counts_below(diagnosis.latents, bounds=diagnosis.bounds)
        most = max(most, int(curve["n"].max()))
        for col, column in enumerate(("n", "frac"), start=1):
            _add_curve(figure, col, i, name, curve.index, curve[column], "below %{x:.2f}: %{y:,.3~f}")
    for col, title in enumerate(("chat_only latents with both nu below pi", "share of those with both nu"), start=1):
        panel_title(figure, 1, col, title, [], shift=6)
        if most == 0:
            panel_text(figure, 1, col, "chat_only latents with both nu below 1: none")
    figure.update_xaxes(range=[0, 1], dtick=0.25, zeroline=False, title={"text": "limit pi of both nu", "standoff": 8})
    for limit in (NU_ERROR_LIMIT, NU_RECONSTRUCTION_LIMIT):
        figure.add_vline(x=limit, line={"color": "rgba(128,128,128,0.55)", "width": 1, "dash": "dot"})
    count_axis(figure, 1, 1, most)
    figure.update_yaxes(title={"text": "latents", "standoff": 6}, row=1, col=1)
    figure.update_yaxes(title={"text": "share", "standoff": 6}, range=[0, 1.02], zeroline=False, row=1, col=2)
    style(figure, **layout)
    return figure


def rank_curves(tables: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot the share in common of the n best latents by nu and by Delta_norm, for every n.

    Args:
        tables: the latents to rank, as rows of the table of `diagnose`, by crosscoder name.
    """
    import plotly.graph_objects as go

    validate_tables(tables, ("delta_norm", "label", "dead", "nu_error", "nu_reconstruction"))
    figure, layout = panel_grid(1, 1, panel=300)
    sizes: list[str] = []
    for i, (name, table) in enumerate(tables.items()):
        curve = rank_overlap(table)
        sizes.append(f"{inert(name)}: {count(len(curve))}")
        share = curve.index / max(1, len(curve))
        _add_curve(figure, 1, i, name, share, curve["frac_common"], "best %{x:.3f}: %{y:.3f} in common")
    if not any(map(len, tables.values())):
        panel_text(figure, 1, 1, "live latents to rank: none")
    chance = {"color": "#8d949e", "width": 1.2, "dash": "dot"}
    figure.add_trace(go.Scatter(x=[0, 1], y=[0, 1], mode="lines", line=chance, name="by chance", hoverinfo="skip"))
    panel_title(figure, 1, 1, "The most chat-leaning latents, ranked", [f"ranked: {', '.join(sizes)}"], shift=6)
    figure.update_xaxes(range=[0, 1], dtick=0.25, zeroline=False)
    figure.update_xaxes(title={"text": "n best, as a share of all that are ranked", "standoff": 8})
    figure.update_yaxes(range=[0, 1.02], zeroline=False, title={"text": "share in common", "standoff": 6})
    style(figure, **layout)
    return figure


def _add_curve(figure: Any, col: int, i: int, name: str, x: Any, y: pd.Series, hover: str) -> None:
    import plotly.graph_objects as go

    colour, dash = LINES[i % len(LINES)]
    curve = go.Scatter(
        x=x,
        y=y,
        mode="lines",
        line={"color": colour, "width": 2, "dash": dash},
        name=inert(name),
        legendgroup=str(i),
        showlegend=col == 1,
        hovertemplate=hover + "<extra></extra>",
    )
    figure.add_trace(curve, row=1, col=col)
