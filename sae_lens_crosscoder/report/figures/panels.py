"""Shared parts of all figures: validation of tables, grids of panels, titles, axes and style."""

from collections.abc import Collection, Mapping
from typing import Any

import pandas as pd

from sae_lens_crosscoder.report.html.inert import inert

LINES = (("#d9601a", "solid"), ("#2f6fb5", "dash"), ("#1b9a83", "dot"), ("#8a5fb8", "dashdot"), ("#b03a6b", "longdash"))
"""Colour and dash of the curves of several crosscoders, distinct in print too."""

_FONT = {"family": "system-ui, -apple-system, 'Segoe UI', sans-serif", "size": 13, "color": "#24292f"}
_GRID = "#e4e7eb"


def validate_tables(tables: Mapping[str, pd.DataFrame], columns: Collection[str]) -> None:
    """Raise a ValueError unless there are tables, and all of them have these columns."""
    if not tables:
        raise ValueError("`diagnoses` is empty: pass results of slc.diagnose by crosscoder name.")
    for name, table in tables.items():
        if missing := [column for column in columns if column not in table]:
            raise ValueError(
                f"The table of {name!r} has no column {', '.join(missing)}: pass the whole table of slc.diagnose."
            )


def count(n: int) -> str:
    """Format a count: thousands separated, and none for 0.

    >>> count(1234), count(0)
    ('1,234', 'none')
    """
    return f"{n:,}" if n else "none"


def panel_grid(
    n_rows: int,
    n_columns: int,
    panel: int = 240,
    header: int = 64,
    footer: int = 58,
    legend: int = 40,
    horizontal_spacing: float = 0.09,
    **subplots: Any,
) -> tuple[Any, dict[str, Any]]:
    """Create a figure of panels in rows, and the layout to pass to `style`.

    Args:
        panel, header, footer, legend: heights in pixels of a panel, of the title above and the axis labels below it,
            and of the legend at the bottom.
        subplots: further options of `make_subplots`.
    """
    from plotly.subplots import make_subplots

    drawn = n_rows * (header + panel + footer) - header - footer
    figure = make_subplots(
        rows=n_rows,
        cols=n_columns,
        horizontal_spacing=horizontal_spacing if n_columns > 1 else 0,
        vertical_spacing=(header + footer) / drawn if n_rows > 1 else 0,
        **subplots,
    )
    return figure, panel_layout(drawn, header, footer, legend)


def panel_layout(drawn: int, header: int, footer: int, legend: int) -> dict[str, Any]:
    """Height, margins and legend of a figure whose panels take `drawn` pixels, as `panel_grid` describes them."""
    return {
        "height": drawn + header + footer + legend,
        "margin": {"t": header, "b": footer + legend, "l": 60, "r": 16},
        "legend": {"orientation": "h", "x": 0, "y": -footer / drawn, "yanchor": "top", "itemsizing": "constant"},
    }


def panel_places(n: int) -> list[tuple[int, int]]:
    """Return row and column of n panels, two in a row.

    >>> panel_places(3)
    [(1, 1), (1, 2), (2, 1)]
    """
    return [(i // 2 + 1, i % 2 + 1) for i in range(n)]


def panel_title(figure: Any, row: int, col: int, name: str, lines: list[str], shift: int) -> None:
    """Add a panel's title, flush left, `shift` pixels above it."""
    text = "<br>".join([f"<b>{inert(name)}</b>", *(f"<span style='font-size:12px'>{line}</span>" for line in lines)])
    figure.add_annotation(
        text=text, **above_panel(figure, row, col, x=0.0, xanchor="left", align="left"), yshift=shift, font={"size": 14}
    )


def count_axis(figure: Any, row: int, col: int, most: int) -> None:
    """Set a vertical axis for counts up to `most`, with ticks at whole numbers only."""
    ticks = {"tickformat": ",d", "dtick": 1 if most < 6 else None}
    figure.update_yaxes(range=[0, 1.08 * max(1, most)], zeroline=False, **ticks, row=row, col=col)


def panel_text(figure: Any, row: int, col: int, text: str, y: float = 0.7) -> None:
    """Add a text to the middle of an empty panel."""
    import plotly.graph_objects as go

    # Plotly does not draw a panel without a trace, and misplaces its texts.
    figure.add_trace(go.Scatter(x=[None], y=[None], showlegend=False, hoverinfo="skip"), row=row, col=col)
    place = above_panel(figure, row, col, x=0.5, xanchor="center", align="center")
    figure.add_annotation(text=text, **{**place, "y": y, "yanchor": "middle"}, font={"size": 13})


def above_panel(figure: Any, row: int, col: int, x: float, xanchor: str, align: str) -> dict[str, Any]:
    """Return the position of an annotation just above a panel; `x` is a fraction of its width."""
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
    """Apply the style of all figures: legible on white. The report's stylesheet recolours it for a dark page."""
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
