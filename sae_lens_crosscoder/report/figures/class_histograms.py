"""Histograms of a quantity by class of latents: a panel per crosscoder, a line per class."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from sae_lens_crosscoder.report.figures.panels import (
    count,
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

CLASSES = ("shared", "other", "base_only", "chat_only")
"""Drawn in this order, so that rarer classes are on top."""
_DASHES = {"other": "dot", "base_only": "dash"}


def cosine_histogram(tables: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot the cosine between the two decoders of every live latent, by class.

    Args:
        tables: tables of `diagnose` by crosscoder name.
    """
    figure = _class_histogram(tables, "cos_sim", np.linspace(-1, 1, 41))
    figure.update_xaxes(title={"text": "cosine of the base and the chat decoder", "standoff": 8}, dtick=0.5)
    return figure


def frequency_histogram(tables: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot the share of tokens on which each live latent is active, by class, on a log axis.

    Args:
        tables: tables of `diagnose` by crosscoder name.
    """
    validate_tables(tables, ("frequency",))
    lowest = [table.frequency[table.frequency > 0].min() for table in tables.values()]
    decades = int(np.floor(np.log10(np.nanmin([*lowest, 0.1]))))
    logs = {
        name: table.assign(log_frequency=np.log10(table.frequency.where(table.frequency > 0)))
        for name, table in tables.items()
    }
    figure = _class_histogram(logs, "log_frequency", np.linspace(decades, 0, 4 * -decades + 1))
    ticks = list(range(decades, 1))
    texts = [f"1e{tick}" if tick else "1" for tick in ticks]
    figure.update_xaxes(tickvals=ticks, ticktext=texts, title={"text": "share of active tokens", "standoff": 8})
    return figure


def template_histogram(tables: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot the share of template tokens among each live latent's chat tokens, by class.

    Args:
        tables: tables with the column `frac_template` of `latent_statistics`, if it is known.
    """
    known = {
        name: table if "frac_template" in table else table.assign(frac_template=np.nan)
        for name, table in tables.items()
    }
    figure = _class_histogram(known, "frac_template", np.linspace(0, 1, 21))
    figure.update_xaxes(title={"text": "share of template tokens", "standoff": 8}, dtick=0.25)
    return figure


def _class_histogram(
    tables: Mapping[str, pd.DataFrame], column: str, edges: Float[np.ndarray, " edges"]
) -> "plotly.graph_objects.Figure":
    validate_tables(tables, (column, "label", "dead"))
    places = panel_places(len(tables))
    figure, layout = panel_grid(places[-1][0], min(2, len(tables)))
    in_legend: set[str] = set()
    for (row, col), (name, table) in zip(places, tables.items(), strict=True):
        live = table[~table["dead"].astype(bool)]
        known = live[live[column].notna()]
        sizes = [f"{label} {count(int((known['label'] == label).sum()))}" for label in reversed(CLASSES)]
        left_out = f"left out: {count(len(table) - len(live))} dead, {count(len(live) - len(known))} without a value"
        panel_title(figure, row, col, name, [", ".join(sizes), left_out], shift=6)
        for label in CLASSES:
            _add_line(figure, row, col, known.loc[known["label"] == label, column], edges, label, in_legend)
        if known.empty:
            panel_text(figure, row, col, "live latents with a value: none")
            figure.update_yaxes(range=[0, 1], row=row, col=col)
    figure.update_xaxes(range=[edges[0], edges[-1]], zeroline=False)
    figure.update_yaxes(rangemode="tozero", zeroline=False, title={"text": "share of the class", "standoff": 6})
    style(figure, **layout)
    return figure


def _add_line(
    figure: Any,
    row: int,
    col: int,
    values: pd.Series,
    edges: Float[np.ndarray, " edges"],
    label: str,
    in_legend: set[str],
) -> None:
    """Draw the outline of a class's histogram; nothing for an empty class."""
    import plotly.graph_objects as go

    if values.empty:
        return
    n, _ = np.histogram(np.clip(values.to_numpy(dtype=float), edges[0], edges[-1]), bins=edges)
    # The outline begins and ends at 0, and is flat over each bin.
    heights = np.concatenate([[0.0], np.repeat(n / len(values), 2), [0.0]])
    counts = np.concatenate([[0], np.repeat(n, 2), [0]])
    line = go.Scatter(
        x=np.repeat(edges, 2),
        y=heights,
        mode="lines",
        cliponaxis=False,
        line={"color": COLOURS[label], "width": 2, "dash": _DASHES.get(label, "solid")},
        fill="tozeroy" if label == "shared" else None,
        fillcolor="rgba(141,148,158,0.18)",
        name=label,
        legendgroup=label,
        showlegend=label not in in_legend,
        customdata=counts,
        hovertemplate=f"{label}: %{{customdata:,}} latents, %{{y:.3f}} of the class<extra></extra>",
    )
    in_legend.add(label)
    figure.add_trace(line, row=row, col=col)
