"""The two figures of a report: where latents write, and which chat-only latents are genuine."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from sae_lens_crosscoder.analysis.diagnosis.classes import CLASS_BORDERS
from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.report.figures.panels import (
    above_panel,
    count,
    panel_grid,
    panel_places,
    panel_text,
    panel_title,
    style,
    validate_tables,
)
from sae_lens_crosscoder.report.html.colours import COLOURS
from sae_lens_crosscoder.report.html.inert import inert

if TYPE_CHECKING:
    import plotly.graph_objects

REGIONS = ("base_only", "other", "shared", "other", "chat_only")
"""The classes between the borders."""
N_BINS = 50
NU_RANGE = (-0.5, 1.5)
MAX_SHARED_DRAWN = 5000
"""Shared latents drawn per panel, because browsers stall above ten thousand points. Chat-only latents are all drawn."""

_SYMBOLS = {"complete_shrinkage": "diamond", "latent_decoupling": "square", "rare": "circle-open"}


@validate_arguments
def delta_norm_histogram(diagnoses: Mapping[str, Diagnosis]) -> "plotly.graph_objects.Figure":
    """Plot a histogram of Delta_norm: a panel per crosscoder, counts on a log axis.

    Dead latents and those without a Delta_norm are left out, and counted in the panel's subtitle.

    Args:
        diagnoses: by crosscoder name.

    Raises:
        ValueError: if `diagnoses` is empty, or a table lacks `delta_norm`, `label` or `dead`.
    """
    tables = {name: diagnosis.latents for name, diagnosis in diagnoses.items()}
    validate_tables(tables, ("delta_norm", "label", "dead"))
    figure, layout = panel_grid(len(tables), 1, panel=170, header=76, footer=28, legend=28, shared_xaxes=True)
    most = 1
    for row, (name, table) in enumerate(tables.items(), start=1):
        most = max(most, _add_histogram(figure, row, name, table))
    axis_title = "Delta_norm (0: base only, 0.5: shared, 1: chat only)"
    figure.update_xaxes(range=[0, 1], tickvals=[0, *CLASS_BORDERS[:2], 0.5, *CLASS_BORDERS[2:], 1], showgrid=False)
    figure.update_xaxes(title={"text": axis_title, "standoff": 10, "font": {"size": 13}}, row=len(tables), col=1)
    # The axis begins at 0.7, so that a bin with one latent has a height.
    log_range = [np.log10(0.7), np.log10(most) + 0.15]
    figure.update_yaxes(type="log", range=log_range, dtick=1, tickformat=",d", title={"text": "latents", "standoff": 6})
    style(figure, **layout, showlegend=False)
    return figure


@validate_arguments
def nu_scatter(diagnoses: Mapping[str, Diagnosis]) -> "plotly.graph_objects.Figure":
    """Plot nu_error against nu_reconstruction of chat-only latents: a panel per crosscoder.

    Chat-only latents have the colour of their verdict, over a grey cloud of shared latents. Those in the box "genuine"
    are no artifact, by the `bounds` in the table's manifest ("signed" by default). Latents without both nu are left
    out and counted in the panel's title. So are latents beyond the axes; zoom out to see them.

    Args:
        diagnoses: by crosscoder name.

    Raises:
        ValueError: if `diagnoses` is empty, or a table lacks a column that is drawn.
    """
    columns = ("delta_norm", "label", "verdict", "n_active", "nu_error", "nu_reconstruction")
    tables = {name: diagnosis.latents for name, diagnosis in diagnoses.items()}
    validate_tables(tables, columns)
    places = panel_places(len(tables))
    figure, layout = panel_grid(places[-1][0], min(2, len(tables)), panel=400, header=100, footer=60, legend=30)
    in_legend: set[str] = set()
    for (row, col), (name, diagnosis) in zip(places, diagnoses.items(), strict=True):
        _add_scatter(figure, row, col, name, diagnosis, in_legend)
        nu_error, nu_reconstruction = diagnosis.nu_columns
        figure.update_xaxes(title={"text": nu_error, "standoff": 8}, row=row, col=col)
        figure.update_yaxes(title={"text": nu_reconstruction, "standoff": 4}, row=row, col=col)
    figure.update_xaxes(range=NU_RANGE, dtick=0.5, zeroline=False)
    figure.update_yaxes(range=NU_RANGE, dtick=0.5, zeroline=False)
    style(figure, **layout)
    return figure


def _add_histogram(figure: Any, row: int, name: str, table: pd.DataFrame) -> int:
    """Draw one panel, and return the count of its highest bin."""
    import plotly.graph_objects as go

    alive = table[~table["dead"].astype(bool)]
    defined = alive[alive["delta_norm"].notna()]
    edges = np.linspace(0, 1, N_BINS + 1)
    counts, _ = np.histogram(defined["delta_norm"].to_numpy(dtype=float), bins=edges)
    middles = (edges[:-1] + edges[1:]) / 2
    regions = [REGIONS[i] for i in np.searchsorted(CLASS_BORDERS, middles)]
    bars = go.Bar(
        x=middles,
        y=counts,
        width=np.full(N_BINS, 0.92 / N_BINS),
        name=inert(name),
        marker={"color": [COLOURS[region] for region in regions], "line": {"width": 0}},
        customdata=np.stack([edges[:-1], edges[1:]], axis=1),
        hovertemplate="Delta_norm %{customdata[0]:.2f} to %{customdata[1]:.2f}<br>%{y:,} latents<extra></extra>",
    )
    figure.add_trace(bars, row=row, col=1)
    left_out = f"{count(len(table) - len(alive))} dead left out"
    if len(alive) > len(defined):
        left_out += f", {len(alive) - len(defined):,} without Delta_norm left out"
    panel_title(figure, row, 1, name, [f"{count(len(defined))} drawn, {left_out}{_by_construction(alive)}"], shift=38)
    for border in CLASS_BORDERS:
        figure.add_vline(x=border, line={"color": "rgba(128,128,128,0.55)", "width": 1, "dash": "dot"}, row=row, col=1)
    _name_regions(figure, row, defined)
    if defined.empty:
        panel_text(figure, row, 1, "live latents: none")
    return int(counts.max())


def _by_construction(table: pd.DataFrame) -> str:
    """How many latents are one-sided by construction, for a panel's title."""
    return f"; one-sided by construction: {count(int(table['exclusive'].sum()))}" if "exclusive" in table else ""


def _name_regions(figure: Any, row: int, defined: pd.DataFrame) -> None:
    """Write the class names and sizes above a panel; the outer two are flush with its ends."""
    middles = (0.0, 0.25, 0.5, 0.75, 1.0)
    anchors = ("left", "center", "center", "center", "right")
    for i, (region, x, anchor) in enumerate(zip(REGIONS, middles, anchors, strict=True)):
        labelled = defined[defined["label"] == region]
        if region == "other":
            labelled = labelled[(labelled["delta_norm"] < 0.5) == (i == 1)]
        figure.add_annotation(
            text=f"{region}<br>{count(len(labelled))}",
            **above_panel(figure, row, 1, x=x, xanchor=anchor, align=anchor),
            font={"size": 12},
        )


def _add_scatter(figure: Any, row: int, col: int, name: str, diagnosis: Diagnosis, in_legend: set[str]) -> None:
    """Draw one panel. `in_legend` collects the groups that are in the legend already."""
    summary: list[str] = []
    beyond: list[str] = []
    nus = diagnosis.nu_columns
    for label in ("shared", "chat_only"):
        table = diagnosis.latents
        latents = table.loc[table["label"] == label]
        nu = latents[[*nus]].to_numpy(dtype=float)
        has_nu: NDArray[np.bool_] = np.asarray(np.isfinite(nu).all(axis=1))
        n_beyond = int(((nu < NU_RANGE[0]) | (nu > NU_RANGE[1]))[has_nu].any(axis=1).sum())
        latents = latents.loc[has_nu]
        drawn = f"{count(len(latents))} drawn"
        if label == "shared":
            if len(latents) > MAX_SHARED_DRAWN:
                drawn = f"{MAX_SHARED_DRAWN:,} of {len(latents):,} drawn"
            add_points(figure, row, col, thinned(latents), "shared", in_legend, nus)
        else:
            for verdict, group in latents.groupby("verdict", dropna=False):
                add_points(figure, row, col, group, str(verdict), in_legend, nus)
            if latents.empty:
                panel_text(figure, row, col, "chat_only latents with both nu: none")
        summary.append(f"{label}: {drawn}, {count(int((~has_nu).sum()))} without nu")
        beyond.append(f"{count(n_beyond)} {label}")
    beyond_axes = f"beyond the axes: {', '.join(beyond)}"
    panel_title(figure, row, col, name, [*summary, beyond_axes + _by_construction(diagnosis.latents)], shift=6)
    draw_box(figure, row, col, diagnosis)


def thinned(latents: pd.DataFrame) -> pd.DataFrame:
    """Select at most `MAX_SHARED_DRAWN` rows, evenly spaced. Latents have no order, so the sample is fair."""
    if len(latents) <= MAX_SHARED_DRAWN:
        return latents
    return latents.iloc[np.linspace(0, len(latents) - 1, MAX_SHARED_DRAWN).astype(int)]


def add_points(
    figure: Any,
    row: int,
    col: int,
    latents: pd.DataFrame,
    group: str,
    in_legend: set[str],
    nus: tuple[str, str],
) -> None:
    """Draw latents at their nu, with the colour and symbol of a verdict, or as a cloud for `shared`."""
    import plotly.graph_objects as go

    if latents.empty:
        return
    is_cloud = group == "shared"
    marker: dict[str, Any] = {
        "color": COLOURS.get(group, COLOURS["other"]),
        "size": 4 if is_cloud else 7,
        "opacity": 0.4 if is_cloud else 0.85,
        "symbol": _SYMBOLS.get(group, "circle"),
    }
    points = go.Scatter(
        x=latents[nus[0]].to_numpy(dtype=float),
        y=latents[nus[1]].to_numpy(dtype=float),
        mode="markers",
        marker=marker,
        name="shared" if is_cloud else f"chat_only: {group}",
        legendgroup=group,
        showlegend=group not in in_legend,
        customdata=np.column_stack([latents.index, latents["delta_norm"], latents["n_active"]]),
        hovertemplate=f"latent %{{customdata[0]}} ({group})<br>delta_norm %{{customdata[1]:.3f}}<br>{nus[0]} %{{x:.3f}}"
        f"<br>{nus[1]} %{{y:.3f}}<br>n_active %{{customdata[2]:,}}<extra></extra>",
    )
    in_legend.add(group)
    figure.add_trace(points, row=row, col=col)


def draw_box(figure: Any, row: int, col: int, diagnosis: Diagnosis) -> None:
    """Frame the region of chat_specific latents: down to the lowest nu, or symmetric with bounds "absolute"."""
    latents = diagnosis.latents
    chat_only = latents.loc[latents["label"] == "chat_only"]
    corners = {"x0": -NU_ERROR_LIMIT, "y0": -NU_RECONSTRUCTION_LIMIT}
    if diagnosis.bounds == "signed":
        for corner, nu in zip(("x0", "y0"), diagnosis.nu_columns, strict=True):
            corners[corner] = float(np.nanmin([NU_RANGE[0], *chat_only[nu]])) - 0.1
    figure.add_shape(
        type="rect",
        **corners,
        x1=NU_ERROR_LIMIT,
        y1=NU_RECONSTRUCTION_LIMIT,
        line={"color": COLOURS["chat_specific"], "width": 1.2, "dash": "dot"},
        fillcolor="rgba(128,128,128,0.07)",
        layer="above",  # or the grid hides its edges
        row=row,
        col=col,
    )
    figure.add_annotation(
        text="genuine",
        x=max(corners["x0"], NU_RANGE[0]),
        y=max(corners["y0"], NU_RANGE[0]),
        xanchor="left",
        yanchor="bottom",
        xshift=3,
        showarrow=False,
        font={"size": 12, "color": COLOURS["chat_specific"]},
        row=row,
        col=col,
    )
