"""Curves over hooks: the share of KL that each brings back, and the size of the difference there."""

from typing import TYPE_CHECKING, Any

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.localisation.first_look import FirstLook
from sae_lens_crosscoder.causal.localisation.hooks import short_name
from sae_lens_crosscoder.report.figures.panels import LINES, panel_grid, panel_title, style
from sae_lens_crosscoder.report.html.inert import inert

if TYPE_CHECKING:
    import plotly.graph_objects

_SHARES = (
    ("share_last", "patch at the last token"),
    ("share_all", "patch at all tokens"),
    ("share_tokens", "the same, all prompts"),
)
_SIZES = (("difference_last", "size at the last token"), ("difference_all", "size, ordinary tokens"))


@validate_arguments
def hook_curves(look: FirstLook) -> "plotly.graph_objects.Figure":
    """Plot the share of KL that chat's activation brings back, and the size of the difference, for every hook.

    The band is the 95 % interval over prompts. A vertical line marks the recommended hook.

    Args:
        look: the result of `first_look`.
    """
    import plotly.graph_objects as go

    figure, layout = panel_grid(2, 1, panel=230, header=48, legend=90)
    names = [inert(short_name(str(name))) for name in look.hooks.index]
    low, high = (look.hooks[f"share_last_{end}"] for end in ("low", "high"))
    if low.notna().all():
        band = {"mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
        figure.add_trace(go.Scatter(x=names, y=low, **band), row=1, col=1)
        filled = go.Scatter(x=names, y=high, fill="tonexty", fillcolor="rgba(217,96,26,0.18)", **band)
        figure.add_trace(filled, row=1, col=1)
    for row, columns in ((1, _SHARES), (2, _SIZES)):
        for i, (column, legend) in enumerate(columns, start=3 * row - 3):
            figure.add_trace(_curve(names, look.hooks[column], i, legend), row=row, col=1)
    panel_title(figure, 1, 1, "Share of KL brought back", [], shift=6)
    panel_title(figure, 2, 1, "Size of the difference", [], shift=6)
    figure.update_yaxes(range=[min(0.0, float(look.hooks["share_last"].min())) - 0.03, 1.05], row=1, col=1)
    figure.update_yaxes(rangemode="tozero", row=2, col=1)
    figure.update_xaxes(type="category", tickangle=-40, nticks=16)
    if look.recommendation.hook_name is not None:
        place = names[list(look.hooks.index).index(look.recommendation.hook_name)]
        for row in (1, 2):
            figure.add_vline(x=place, line={"color": "#8d949e", "dash": "dot", "width": 1.2}, row=row, col=1)
    layout["legend"] |= {"traceorder": "normal"}  # the band would reverse it
    style(figure, **layout)
    return figure


def _curve(names: list[str], values: Any, i: int, legend: str) -> Any:
    import plotly.graph_objects as go

    colour, dash = LINES[i]
    return go.Scatter(
        x=names,
        y=values,
        mode="lines+markers",
        line={"color": colour, "width": 2, "dash": dash},
        marker={"size": 5},
        name=legend,
        hovertemplate="%{x}: %{y:.3f}<extra>" + legend + "</extra>",
    )
