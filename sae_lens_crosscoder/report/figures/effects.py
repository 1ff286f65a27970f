"""The causal experiment as the paper's bar chart."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.report.figures.panels import panel_grid, panel_text, panel_title, style
from sae_lens_crosscoder.report.html.inert import inert

if TYPE_CHECKING:
    import plotly.graph_objects

WINDOWS = {"tokens 2-10": "tokens 2 to 10 of the answer", "all": "all tokens of the answer"}
"""The windows that are drawn, and their titles."""
_VARIANTS = {"": ("no latents chosen", "#8d949e"), "replace": ("replace", "#d9601a"), "add": ("add", "#2f6fb5")}
_COLUMNS = ("setup", "variant", "window", "kl_nats", "kl_nats_low", "kl_nats_high", "n_tokens", "n_conversations")
_BAR = 0.38
"""A bar's width, of the distance between setups."""


@validate_arguments
def effects_bars(effects: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """Plot the KL from the chat model for each setup with 95 % intervals. Lower is nearer.

    There is a row of panels per crosscoder. A dotted line continues the setup `none`. The setup `chat` is left out,
    because its KL is 0 by construction.

    Args:
        effects: tables of `causal_effects` by crosscoder name.

    Raises:
        ValueError: if `effects` is empty, or a table lacks a column that is drawn.
    """
    _validate_effects(effects)
    figure, layout = panel_grid(
        len(effects), len(WINDOWS), panel=260, header=60, footer=130, horizontal_spacing=0.03, shared_yaxes=True
    )
    for row, (name, table) in enumerate(effects.items(), start=1):
        for col, (window, title) in enumerate(WINDOWS.items(), start=1):
            drawn = table[(table["window"] == window) & (table["setup"] != "chat")]
            panel_title(figure, row, col, name, [title], shift=6)
            _add_bars(figure, row, col, drawn)
        figure.update_yaxes(title={"text": "KL in nats", "standoff": 6}, row=row, col=1)
    figure.update_xaxes(tickangle=-40)
    figure.update_yaxes(rangemode="tozero")
    style(figure, **layout)
    return figure


def _add_bars(figure: Any, row: int, col: int, drawn: pd.DataFrame) -> None:
    import plotly.graph_objects as go

    if not drawn["kl_nats"].notna().any():
        panel_text(figure, row, col, "tokens: none")
    setups = list(dict.fromkeys(drawn["setup"]))
    in_both = set(drawn["setup"][drawn["variant"] == "replace"]) & set(drawn["setup"][drawn["variant"] == "add"])
    figure.update_xaxes(categoryorder="array", categoryarray=[inert(setup) for setup in setups], row=row, col=col)
    for variant, (legend, colour) in _VARIANTS.items():
        bars = drawn[drawn["variant"] == variant]
        value = bars["kl_nats"].to_numpy(dtype=float)
        low, high = (bars[column].to_numpy(dtype=float) for column in ("kl_nats_low", "kl_nats_high"))
        bar = go.Bar(
            x=[inert(setup) for setup in bars["setup"]],
            y=value,
            width=_BAR,
            offset=[_offset(variant) if setup in in_both else -_BAR / 2 for setup in bars["setup"]],
            error_y={"type": "data", "array": high - value, "arrayminus": value - low, "thickness": 1.2, "width": 3},
            name=legend,
            legendgroup=variant,
            showlegend=(row, col) == (1, 1),
            marker={"color": colour, "line": {"width": 0}},
            hovertemplate="%{x}<br>%{y:.4f} nats<extra>" + legend + "</extra>",
        )
        figure.add_trace(bar, row=row, col=col)
    for none in drawn["kl_nats"][drawn["setup"] == "none"]:
        figure.add_hline(none, row=row, col=col, line={"color": _VARIANTS[""][1], "dash": "dot", "width": 1})


def _offset(variant: str) -> float:
    """The left edge of a bar that has a neighbour."""
    return 0.0 if variant == "add" else -_BAR


def _validate_effects(effects: Mapping[str, pd.DataFrame]) -> None:
    if not effects:
        raise ValueError("`effects` is empty: pass tables of slc.causal.causal_effects by crosscoder name.")
    for name, table in effects.items():
        if missing := [column for column in _COLUMNS if column not in table]:
            raise ValueError(
                f"The table of {name!r} has no column {', '.join(missing)}: pass a table of slc.causal.causal_effects."
            )
