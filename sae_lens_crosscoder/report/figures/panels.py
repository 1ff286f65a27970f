"""What the panels of all figures share: colours, titles, style, and what a table must have to be drawn."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from sae_lens_crosscoder.report.html.inert import inert

COLOURS = {
    "base_only": "#2f6fb5",
    "shared": "#8d949e",
    "chat_only": "#d9601a",
    "other": "rgba(141,148,158,0.5)",
    "base_specific": "#2f6fb5",
    "chat_specific": "#d9601a",
    "complete_shrinkage": "#8a5fb8",
    "latent_decoupling": "#1b9a83",
    "rotated": "#b03a6b",
    "rare": "#c9a227",
    "undetermined": "rgba(141,148,158,0.5)",
    "undefined": "rgba(141,148,158,0.5)",
    "dead": "rgba(141,148,158,0.5)",
}
"""By class and verdict: a hue for base, one for chat, grey for what is shared or unknown; neither for artifacts."""

LINES = (("#d9601a", "solid"), ("#2f6fb5", "dash"), ("#1b9a83", "dot"), ("#8a5fb8", "dashdot"), ("#b03a6b", "longdash"))
"""How curves of several crosscoders are told apart, in colour and in print."""

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": "#24292f"}
_GRID = "#e4e7eb"


def require_tables(tables: Mapping[str, pd.DataFrame], columns: Collection[str]) -> None:
    """Raise unless there are tables, and all of them have these columns."""
    if not tables:
        raise ValueError("There is nothing to report on: `tables` is empty. Give it a table of slc.diagnose by name.")
    for name, table in tables.items():
        missing = [column for column in columns if column not in table]
        if missing:
            raise ValueError(
                f"The table of {name!r} has no column {', '.join(missing)}: it is not a table of slc.diagnose, "
                "or columns were dropped from it. Give the whole table."
            )


def count(n: int) -> str:
    """A count as text: thousands apart, and none rather than 0.

    >>> count(1234), count(0)
    ('1,234', 'none')
    """
    return f"{n:,}" if n else "none"


def panel_grid(
    n_rows: int, n_columns: int, panel: int = 240, header: int = 64, footer: int = 58, legend: int = 40
) -> tuple[Any, dict[str, Any]]:
    """A figure of panels in rows, and the layout that `style` wants for it.

    Args:
        panel, header, footer, legend: heights in pixels of a panel, of the title above and the axis labels below each,
            and of the legend at the bottom.
    """
    from plotly.subplots import make_subplots

    drawn = n_rows * (header + panel + footer) - header - footer
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        horizontal_spacing=0.09 if n_columns > 1 else 0,
        vertical_spacing=(header + footer) / drawn if n_rows > 1 else 0,
    )
    layout = {
        "height": drawn + header + footer + legend,
        "margin": {"t": header, "b": footer + legend, "l": 60, "r": 16},
        "legend": {"orientation": "h", "x": 0, "y": -footer / drawn, "yanchor": "top", "itemsizing": "constant"},
    }
    return figure, layout


def panel_places(n: int) -> list[tuple[int, int]]:
    """Row and column of n panels, two in a row.

    >>> panel_places(3)
    [(1, 1), (1, 2), (2, 1)]
    """
    return [(i // 2 + 1, i % 2 + 1) for i in range(n)]


def panel_title(figure: Any, row: int, col: int, name: str, lines: list[str], shift: int) -> None:
    """A panel's title, flush left, `shift` pixels above it."""
    text = "<br>".join([f"<b>{inert(name)}</b>", *(f"<span style='font-size:12px'>{line}</span>" for line in lines)])
    figure.add_annotation(
        text=text, **above_panel(figure, row, col, x=0.0, xanchor="left", align="left"), yshift=shift, font={"size": 14}
    )


def count_axis(figure: Any, row: int, col: int, most: int) -> None:
    """A vertical axis for counts up to `most`, with no tick between two whole numbers."""
    ticks = {"tickformat": ",d", "dtick": 1 if most < 6 else None}
    figure.update_yaxes(range=[0, 1.08 * max(1, most)], zeroline=False, **ticks, row=row, col=col)


def panel_text(figure: Any, row: int, col: int, text: str, y: float = 0.7) -> None:
    """A text in the middle of a panel, for when there is nothing to draw."""
    import plotly.graph_objects as go

    # A panel without any trace is not drawn, and the texts that are placed by it go astray.
    figure.add_trace(go.Scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip"), row=row, col=col)
    place = above_panel(figure, row, col, x=0.5, xanchor="center", align="center")
    figure.add_annotation(text=text, **{**place, "y": y, "yanchor": "middle"}, font={"size": 13})


def above_panel(figure: Any, row: int, col: int, x: float, xanchor: str, align: str) -> dict[str, Any]:
    """An annotation's place just above a panel; `x` is a fraction of its width."""
    subplot = figure.get_subplot(row, col)
    return {
        "x": x,
        "xref": f"{subplot.yaxis.anchor} domain",
        "y": 1,
        "yref": f"{subplot.xaxis.anchor} domain",
        "xanchor": xanchor,
        "yanchor": "bottom",
        "align": align,
        "showarrow": False,
    }


def style(figure: Any, **layout: Any) -> None:
    """The look of all figures: legible on white; the report's stylesheet recolours it for a dark page."""
    figure.update_layout(
        template="none",
        font=_FONT,
        paper_bgcolor="white",
        plot_bgcolor="white",
        hoverlabel={"bgcolor": "#24292f", "bordercolor": "#24292f", "font": {"color": "white", "size": 12}},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#8d949e", "activecolor": "#8d949e"},
        **layout,
    )
    figure.update_xaxes(showline=True, linecolor="#8d949e", gridcolor=_GRID, ticks="outside", tickcolor="#8d949e")
    figure.update_yaxes(showline=False, gridcolor=_GRID)
