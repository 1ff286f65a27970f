"""Format values and tables for HTML."""

from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import pandas as pd
from markupsafe import Markup

from sae_lens_crosscoder.report.html.colours import COLOURS
from sae_lens_crosscoder.report.html.inert import inert

MISSING = "\u2013"  # an en dash


def rounded(value: Any, decimals: int = 2) -> str:
    """Format a value as plain text: floats rounded, booleans as yes or no, nan and None as a dash.

    >>> rounded(0.126), rounded(float("nan")), rounded(7), rounded(True)
    ('0.13', '–', '7', 'yes')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return str(value)
    if value is None or value is pd.NA or (isinstance(value, Real) and value != value):
        return MISSING
    if isinstance(value, Real):
        number = round(float(value), decimals) + 0.0  # turns -0.0 into 0.0
        return f"{number:.{decimals}f}".replace("-", "\u2212")  # a minus, as wide as a digit
    return str(value)


def significant(value: Any) -> str:
    """Format a number as text: counts whole, others with three significant digits, nan and None as a dash.

    >>> significant(3176), significant(0.04308), significant(float("nan")), significant("none")
    ('3,176', '0.0431', '–', 'none')
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:
        return MISSING
    text = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
    return text.replace("-", "\u2212")


def cell(value: Any, decimals: int = 2) -> Markup:
    """Format a value as HTML: `rounded`, inert, with a coloured dot before classes and verdicts.

    >>> cell("a < b"), cell("shared")
    (Markup('a &lt; b'), Markup('<i class="dot shared"></i>shared'))
    """
    dot = f'<i class="dot {value}"></i>' if isinstance(value, str) and value in COLOURS else ""
    return Markup(dot + inert(rounded(value, decimals)))


def html_table(
    frame: pd.DataFrame, corner: str | None = None, css_class: str = "", decimals: int = 2, caption: str = ""
) -> Markup:
    """Format a frame as an HTML table, numbers flush right.

    Args:
        corner: the head of the index column; None leaves the index out.
        caption: a text above the table, which says what it shows.
    """
    css = ["n" if pd.api.types.is_numeric_dtype(dtype) else "t" for dtype in frame.dtypes]
    heads = [f'<th scope="col" class="{c}">{inert(name)}</th>' for c, name in zip(css, frame.columns, strict=True)]
    if corner is not None:
        heads.insert(0, f'<th scope="col" class="t">{inert(corner)}</th>')
    columns = [frame.iloc[:, i].tolist() for i in range(frame.shape[1])]
    for i, name in enumerate(frame.columns):
        if str(name).startswith("n_"):
            columns[i] = [f"{value:,}" if isinstance(value, int) else value for value in columns[i]]
    rows: list[str] = []
    for i, index in enumerate(frame.index):
        cells = [f'<td class="{c}">{cell(column[i], decimals)}</td>' for c, column in zip(css, columns, strict=True)]
        if corner is not None:
            cells.insert(0, f'<th scope="row" class="t">{inert(index)}</th>')
        rows.append("<tr>" + "".join(cells) + "</tr>")
    head = f"<caption>{inert(caption)}</caption>" if caption else ""
    return Markup(
        f'<div class="scroll"><table class="{css_class}">{head}<thead><tr>{"".join(heads)}</tr></thead><tbody>\n'
        + "\n".join(rows)
        + "\n</tbody></table></div>"
    )


def manifest_list(manifest: Mapping[Any, Any]) -> Markup:
    """Format a manifest as an HTML definition list."""
    if not manifest:
        return Markup("<p>none recorded</p>")
    items = [f"<dt>{inert(key)}</dt><dd>{_manifest_value(value)}</dd>" for key, value in manifest.items()]
    return Markup(f"<dl>{''.join(items)}</dl>")


def _manifest_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(f"{inert(key)} {_manifest_value(part)}" for key, part in value.items())  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, list | tuple):
        return ", ".join(_manifest_value(part) for part in value)
    if type(value) is int:  # not bool
        return f"{value:,}"
    return cell(value, 3)
