"""The causal experiment as the paper's bar chart, and the page around it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sae_lens_crosscoder.report.cells import html_table
from sae_lens_crosscoder.report.document import write_document
from sae_lens_crosscoder.report.html import figure_block, page
from sae_lens_crosscoder.report.inert import inert
from sae_lens_crosscoder.report.panels import panel_text, panel_title, style

if TYPE_CHECKING:
    import plotly.graph_objects

WINDOWS = {"tokens 2-10": "the first 9 tokens after the first", "all": "all tokens of the answer"}
"""The windows that are drawn, and what they are called."""
_VARIANTS = {"": ("no latents chosen", "#8d949e"), "replace": ("replace", "#d9601a"), "add": ("add", "#2f6fb5")}
_COLUMNS = ("setup", "variant", "window", "kl_nats", "kl_nats_low", "kl_nats_high", "n_tokens", "n_conversations")
_PANEL, _HEADER, _LABELS, _LEGEND = 260, 60, 130, 40
"""Heights in pixels of a panel, its title, the setups' names below it, and the legend."""


def effects_bars(effects: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """KL from the chat model per setup, with 95 % intervals: a row of panels per crosscoder, lower is nearer.

    The setup `chat`, whose KL is 0 by construction, is left out.

    Args:
        effects: tables of `causal_effects` by crosscoder name.

    Raises:
        ValueError: without tables, or for a table that lacks a column that is drawn.
    """
    from plotly.subplots import make_subplots

    _require(effects)
    n_rows = len(effects)
    drawn_height = n_rows * (_PANEL + _HEADER + _LABELS) - _HEADER - _LABELS
    figure = make_subplots(
        rows=n_rows,
        cols=len(WINDOWS),
        shared_yaxes=True,
        horizontal_spacing=0.03,
        vertical_spacing=(_HEADER + _LABELS) / drawn_height if n_rows > 1 else 0,
    )
    for row, (name, table) in enumerate(effects.items(), start=1):
        for col, (window, title) in enumerate(WINDOWS.items(), start=1):
            drawn = table[(table["window"] == window) & (table["setup"] != "chat")]
            panel_title(figure, row, col, name, [title], shift=6)
            _add_bars(figure, row, col, drawn)
        figure.update_yaxes(title={"text": "KL in nats", "standoff": 6}, row=row, col=1)
    figure.update_xaxes(tickangle=-40)
    figure.update_yaxes(rangemode="tozero")
    margin = {"t": _HEADER, "b": _LABELS + _LEGEND, "l": 60, "r": 16}
    legend = {"orientation": "h", "x": 0, "y": -_LABELS / drawn_height, "yanchor": "top"}
    height = drawn_height + margin["t"] + margin["b"]
    style(figure, height=height, margin=margin, legend=legend, barmode="group", bargap=0.25)
    return figure


def _add_bars(figure: Any, row: int, col: int, drawn: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    if not drawn["kl_nats"].notna().any():
        panel_text(figure, row, col, "tokens: none")
    for variant, (legend, colour) in _VARIANTS.items():
        bars = drawn[drawn["variant"] == variant]
        value = bars["kl_nats"].to_numpy(dtype=float)
        low, high = (bars[column].to_numpy(dtype=float) for column in ("kl_nats_low", "kl_nats_high"))
        bar = go.Bar(
            x=[inert(setup) for setup in bars["setup"]],
            y=value,
            error_y={"type": "data", "array": high - value, "arrayminus": value - low, "thickness": 1.2, "width": 3},
            name=legend,
            legendgroup=variant,
            showlegend=(row, col) == (1, 1),
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate="%{x}<br>%{y:.4f} nats<extra>" + legend + "</extra>",
        )
        figure.add_trace(bar, row=row, col=col)


def write_effects(path: str | Path, effects: Mapping[str, pd.DataFrame], title: str = "What the latents carry") -> Path:
    """Write the bar chart and the tables behind it as one HTML file that opens anywhere, offline.

    Args:
        effects: tables of `causal_effects` by crosscoder name.

    Raises:
        ValueError: as `effects_bars`.
    """
    _require(effects)
    parts = [
        f"<h1>{inert(title)}</h1>",
        "<p>The chat model's layers after the hook were given the base model's activation, plus what latents carry "
        "over from the chat model. The bars say how far the answer is then from the chat model's own, on answers that "
        "the chat model wrote: KL in nats per token, with 95 % intervals over conversations. Lower is nearer; "
        "<b>none</b> carries over nothing, <b>all</b> all latents, <b>error</b> only what the crosscoder does not "
        "explain, <b>template</b> the chat model's activation at the template's tokens. <b>top</b> and <b>bottom</b> "
        "are halves of the most chat-leaning latents.</p>",
        figure_block(effects_bars(effects)),
    ]
    for name, table in effects.items():
        parts += [f"<h3>{inert(name)}</h3>", html_table(table)]
    return write_document(path, page(title, "\n".join(parts)))


def _require(effects: Mapping[str, pd.DataFrame]) -> None:
    if not effects:
        raise ValueError("There is nothing to draw: `effects` is empty. Give it a table of slc.causal_effects by name.")
    for name, table in effects.items():
        missing = [column for column in _COLUMNS if column not in table]
        if missing:
            raise ValueError(
                f"The table of {name!r} has no column {', '.join(missing)}: it is not a table of slc.causal_effects."
            )
