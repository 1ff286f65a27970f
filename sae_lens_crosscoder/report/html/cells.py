"""How values read in the report's tables."""

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import pandas as pd

from sae_lens_crosscoder.report.figures.panels import COLOURS
from sae_lens_crosscoder.report.html.inert import inert

MISSING = "\u2013"  # an en dash
TOP_LATENTS = 30


def cell(value: Any, decimals: int = 2) -> str:
    """A value as HTML text: floats rounded, nan and None as a dash, classes and verdicts with a dot of their colour.

    >>> cell(0.126), cell(float("nan")), cell(7), cell("a < b")
    ('0.13', '–', '7', 'a &lt; b')
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Integral):
        return str(value)
    if value is None or value is pd.NA or (isinstance(value, Real) and value != value):
        return MISSING
    if isinstance(value, Real):
        rounded = round(float(value), decimals) + 0.0  # turns -0.0 into 0.0
        return f"{rounded:.{decimals}f}".replace("-", "\u2212")  # a minus, as wide as a digit
    dot = f'<i class="dot {value}"></i>' if isinstance(value, str) and value in COLOURS else ""
    return dot + inert(value)


def html_table(frame: pd.DataFrame, corner: str | None = None, css_class: str = "", decimals: int = 2) -> str:
    """A frame as an HTML table, numbers to the right; `corner` heads the index, None leaves it out."""
    numeric = [pd.api.types.is_numeric_dtype(frame.dtypes.iloc[i]) for i in range(frame.shape[1])]
    css = ["n" if is_numeric else "t" for is_numeric in numeric]
    heads = [f'<th scope="col" class="{c}">{inert(column)}</th>' for c, column in zip(css, frame.columns, strict=True)]
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
    return _scrolling(f"<tr>{''.join(heads)}</tr>", rows, css_class)


def latents_table(table: pd.DataFrame) -> str:
    """The live latents with the highest Delta_norm, as an HTML table; among equals, those that fire most first."""
    alive = table[~table["dead"].astype(bool)].rename_axis("latent").reset_index()
    top = alive.sort_values(["delta_norm", "n_active"], ascending=False, kind="stable").head(TOP_LATENTS)
    if top.empty:
        return "<p>none</p>"
    head = (
        '<tr><th scope="col" class="n">latent</th><th scope="col" class="n">delta_norm</th>'
        '<th scope="col" class="t">label</th><th scope="col" class="t">verdict</th>'
        '<th scope="colgroup" class="t" colspan="2">nu_error [low, high]</th>'
        '<th scope="colgroup" class="t" colspan="2">nu_reconstruction [low, high]</th>'
        '<th scope="col" class="n">nu_free</th><th scope="col" class="n">q_value</th>'
        '<th scope="col" class="n">n_active</th><th scope="col" class="n">max_activation</th></tr>'
    )
    return _scrolling(head, [_latent_row(row) for row in top.to_dict("records")], "latents")


def _latent_row(row: Mapping[Any, Any]) -> str:
    cells = [("n", cell(row["latent"])), ("n", cell(row["delta_norm"], 3)), ("t", cell(row["label"]))]
    cells.append(("t", cell(row["verdict"])))
    for nu in ("nu_error", "nu_reconstruction"):
        low, high = cell(row[f"{nu}_low"]), cell(row[f"{nu}_high"])
        interval = f"[{low}, {high}]" if MISSING not in (low, high) else ""
        cells += [("n", cell(row[nu])), ("n interval", interval)]
    cells += [("n", cell(row["nu_free"])), ("n", cell(row["q_value"]))]
    cells += [("n", f"{row['n_active']:,.0f}"), ("n", cell(row["max_activation"]))]
    return "<tr>" + "".join(f'<td class="{css}">{text}</td>' for css, text in cells) + "</tr>"


def _scrolling(head: str, rows: Sequence[str], css_class: str) -> str:
    body = "\n".join(rows)
    return (
        f'<div class="scroll"><table class="{css_class}"><thead>{head}</thead><tbody>\n{body}\n</tbody></table></div>'
    )


def manifest_list(attrs: Mapping[Any, Any]) -> str:
    """What a table is of, from its `.attrs`, as an HTML definition list."""
    if not attrs:
        return "<p>none recorded</p>"
    items = [f"<dt>{inert(key)}</dt><dd>{_manifest_value(value)}</dd>" for key, value in attrs.items()]
    return f"<dl>{''.join(items)}</dl>"


def _manifest_value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "<br>".join(f"{inert(key)} {_manifest_value(part)}" for key, part in value.items())  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(value, (list, tuple)):
        return ", ".join(_manifest_value(part) for part in value)
    if type(value) is int:  # not bool
        return f"{value:,}"
    return cell(value, 3)
