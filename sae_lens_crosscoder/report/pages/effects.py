"""The causal experiment as the paper's bar chart, and the page around it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from sae_lens_crosscoder.report.figures.panels import panel_text, panel_title, style
from sae_lens_crosscoder.report.html.cells import html_table
from sae_lens_crosscoder.report.html.document import write_document
from sae_lens_crosscoder.report.html.inert import inert
from sae_lens_crosscoder.report.pages.report_page import figure_block, page

if TYPE_CHECKING:
    import plotly.graph_objects

WINDOWS = {"tokens 2-10": "tokens 2 to 10 of the answer", "all": "all tokens of the answer"}
"""The windows that are drawn, and what they are called."""
_VARIANTS = {"": ("no latents chosen", "#8d949e"), "replace": ("replace", "#d9601a"), "add": ("add", "#2f6fb5")}
_COLUMNS = ("setup", "variant", "window", "kl_nats", "kl_nats_low", "kl_nats_high", "n_tokens", "n_conversations")
_HIDDEN = [f"{quantity}_{end}" for quantity in ("loss_nats", "frac_agree") for end in ("low", "high")]
_SETUPS = """<dl class="reading">
<dt>none, all, error</dt><dd>Carried over is nothing (the dotted line), all latents, or what they do not explain.</dd>
<dt>template</dt><dd>The chat model's own activation at the template's tokens, the base model's elsewhere.</dd>
<dt>top, bottom</dt><dd>Halves of the most chat-leaning latents: by Delta_norm, and by how small both nu are.</dd>
<dt>chat_only, chat_specific</dt><dd>The latents that thresholds choose: on Delta_norm, and on both nu too.</dd>
<dt>random</dt><dd>Other living latents: as many as in a half, or as many as carry over the energy of top_nu.</dd>
<dt>replace, add</dt><dd>What latents write in the chat model, in place of what they write in base or on top of it.</dd>
</dl>"""
_CONTRASTS = """<p>Pairs of setups: <b>kl_nats_difference</b> is below 0 where the first is nearer to the chat model;
p_value from exchanging the two within conversations.</p>"""
_PANEL, _HEADER, _LABELS, _LEGEND = 260, 60, 130, 40
"""Heights in pixels of a panel, its title, the setups' names below it, and the legend."""
_BAR = 0.38
"""A bar's width, of the distance between setups."""


def effects_bars(effects: Mapping[str, pd.DataFrame]) -> "plotly.graph_objects.Figure":
    """KL from the chat model per setup, with 95 % intervals: a row of panels per crosscoder, lower is nearer.

    A dotted line continues the setup `none`; `chat`, whose KL is 0 by construction, is left out.

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
    style(figure, height=height, margin=margin, legend=legend)
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
    """Where a bar begins that another one stands beside."""
    return 0.0 if variant == "add" else -_BAR


def write_effects(
    path: str | Path,
    effects: Mapping[str, pd.DataFrame],
    contrasts: Mapping[str, pd.DataFrame] | None = None,
    title: str = "What the latents carry",
) -> Path:
    """Write the bar chart and the tables behind it as one HTML file that opens anywhere, offline.

    Args:
        effects: tables of `causal_effects` by crosscoder name.
        contrasts: tables of `effect_contrasts` by crosscoder name.

    Raises:
        ValueError: as `effects_bars`.
    """
    _require(effects)
    parts = [
        f"<h1>{inert(title)}</h1>",
        "<p>The chat model's layers after the hook were given the base model's activation, plus what latents carry "
        "over from the chat model. The bars say how far its predictions are then from its own: KL in nats per token of "
        "the answers, with 95 % intervals over conversations. Lower is nearer.</p>",
        _SETUPS,
        figure_block(effects_bars(effects)),
    ]
    for name, table in effects.items():
        shown = table.loc[table["n_tokens"] > 0, [column for column in table if column not in _HIDDEN]]
        parts += [f"<h3>{inert(name)}</h3>", html_table(shown)]
        if contrasts is not None and name in contrasts:
            tested = contrasts[name].dropna(subset="kl_nats_difference")
            tested = tested.assign(p_value=[f"{p:.3f}" for p in tested["p_value"]])
            parts += [_CONTRASTS, html_table(tested)]
    return write_document(path, page(title, "\n".join(parts)))


def _require(effects: Mapping[str, pd.DataFrame]) -> None:
    if not effects:
        raise ValueError("`effects` is empty: pass tables of slc.causal.causal_effects by crosscoder name.")
    for name, table in effects.items():
        missing = [column for column in _COLUMNS if column not in table]
        if missing:
            raise ValueError(
                f"The table of {name!r} has no column {', '.join(missing)}: pass a table of slc.causal.causal_effects."
            )
