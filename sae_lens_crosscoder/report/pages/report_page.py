"""The report: one HTML file that says what fine-tuning changed, and asks the network for nothing."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_FREE_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import (
    CLASS_BORDERS,
    REGIONS,
    delta_norm_histogram,
    nu_scatter,
)
from sae_lens_crosscoder.report.figures.panels import require_tables
from sae_lens_crosscoder.report.html.cells import TOP_LATENTS, html_table, latents_table, manifest_list
from sae_lens_crosscoder.report.html.document import colour_rules, document, resource, script_element, write_document
from sae_lens_crosscoder.report.html.inert import inert

_COLUMNS = (
    *("delta_norm", "label", "verdict", "n_active", "max_activation", "dead"),
    *("nu_error", "nu_error_low", "nu_error_high"),
    *("nu_reconstruction", "nu_reconstruction_low", "nu_reconstruction_high"),
    *("nu_free", "q_value"),
)


def write_report(
    path: str | Path,
    tables: Mapping[str, pd.DataFrame],
    comparison: pd.DataFrame,
    concepts: pd.DataFrame | None = None,
    title: str = "Crosscoder report",
    notes: Sequence[str] = (),
) -> Path:
    """Write one HTML file (about 5 MB, nearly all of it plotly.js) that opens anywhere, offline, and can be printed.

    Every name in it is escaped, and its Content-Security-Policy lets no request out and only its own two scripts run.

    Args:
        tables: tables of `diagnose` by crosscoder name; their `.attrs` become the manifest.
        comparison: a column of finished texts per crosscoder, a row per thing compared.
        concepts: such as `concept_table` makes, its index included unless it is a plain count.
        notes: sentences for the end of the page.

    Raises:
        ValueError: without tables, or for a table that lacks a column that is shown.
    """
    require_tables(tables, _COLUMNS)
    return write_document(path, page(title, _body(tables, comparison, concepts, title, notes)))


def page(title: str, body: str) -> str:
    """A whole HTML page around a body with figures."""
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs().replace("\r\n", "\n"), resource("html/page.js")]
    return document(
        title,
        f"{body}\n{script_element(scripts[1])}",
        style="\n" + resource("html/page.css") + colour_rules("background"),
        scripts=scripts,
        head=script_element(scripts[0]) + "\n",
        inline_styles=True,
    )


def _body(
    tables: Mapping[str, pd.DataFrame],
    comparison: pd.DataFrame,
    concepts: pd.DataFrame | None,
    title: str,
    notes: Sequence[str],
) -> str:
    parts = [
        f"<h1>{inert(title)}</h1>",
        _introduction(tables),
        _conclusions(tables),
        "<h2>Side by side</h2>",
        html_table(comparison, corner="", css_class="comparison"),
        "<h2>How to read the numbers</h2>",
        _how_to_read(),
        "<h2>On which model latents write</h2>",
        figure_block(delta_norm_histogram(tables)),
        "<h2>Which chat-only latents are genuine</h2>",
        "<p>Each coloured point is a chat-only latent; those in the box are neither artifact, those that are rare "
        "fired too seldom to be judged. Base-only and other latents are not drawn.</p>",
        figure_block(nu_scatter(tables), "two" if len(tables) > 1 else ""),
    ]
    if concepts is not None:
        parts += ["<h2>Known concepts</h2>", _concepts(concepts)]
    parts.append(f"<h2>The {TOP_LATENTS} most chat-only latents</h2>")
    parts.append(
        '<p class="soft">Live latents by delta_norm, then by n_active. [low, high]: 95 % bootstrap interval.</p>'
    )
    parts += [f"<h3>{inert(name)}</h3>{latents_table(table)}" for name, table in tables.items()]
    manifests = [f"<div><h3>{inert(name)}</h3>{manifest_list(table.attrs)}</div>" for name, table in tables.items()]
    parts += ["<h2>What this was made from</h2>", f'<div class="manifests">{"".join(manifests)}</div>']
    if notes:
        parts += ["<h2>Notes</h2>", f"<ul>{''.join(f'<li>{inert(note)}</li>' for note in notes)}</ul>"]
    return "\n".join(parts)


def _introduction(tables: Mapping[str, pd.DataFrame]) -> str:
    names = [f"<b>{inert(name)}</b>" for name in tables]
    who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    verb = "reads" if len(names) == 1 else "read"
    return (
        f"<p>{who} {verb} the activations of a base model and of its chat-tuned version together, and split them into "
        "latents. Most latents write on both models; those that write on chat only are candidates for what tuning "
        "added. Some of these are artifacts of training, and this page tells which: it shows where latents write, and "
        "for every chat-only latent whether the base model has it after all.</p>"
    )


def _conclusions(tables: Mapping[str, pd.DataFrame]) -> str:
    sentences = [(name, table.attrs.get("conclusion")) for name, table in tables.items()]
    items = [f"<li><b>{inert(name)}</b>: {inert(said)}.</li>" for name, said in sentences if said]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def _how_to_read() -> str:
    stops = (0, *CLASS_BORDERS, 1)
    bars = "".join(f'<i class="{region}"></i>' for region in REGIONS)
    names = "".join(f"<span>{region}</span>" for region in REGIONS)
    widths = " ".join(f"minmax(0,{high - low:.2f}fr)" for low, high in pairwise(stops))
    grid = f'style="grid-template-columns:{widths}"'
    return f"""<div class="axis" role="img" aria-label="Delta_norm: 0 base only, 0.5 shared, 1 chat only">
<div {grid}>{names}</div><div {grid}>{bars}</div>
<div class="ends"><span>0: base only</span><span>Delta_norm 0.5: shared</span><span>1: chat only</span></div>
</div>
{reading_list()}"""


def reading_list() -> str:
    """What the table's numbers mean, as an HTML definition list."""
    return f"""<dl class="reading">
<dt>Delta_norm</dt><dd>On which model a latent writes, from its two decoder norms alone.</dd>
<dt>nu_error</dt><dd>Near 0: nothing of the latent is in what the crosscoder fails to reconstruct of base. High
(from {NU_ERROR_LIMIT}): base has the latent too, and its decoder norm
there was shrunk away, <i>Complete Shrinkage</i>.</dd>
<dt>nu_reconstruction</dt><dd>Near 0: no other latent writes it into base. High (from {NU_RECONSTRUCTION_LIMIT}): other
latents do, <i>Latent Decoupling</i>.</dd>
<dt>nu_free</dt><dd>How long the direction is that the data prefer in base, whatever the decoder says, relative to the
one in chat. Above {NU_FREE_LIMIT}: base has the latent along another direction, it was <i>rotated</i>.</dd>
<dt>q_value</dt><dd>The share of chance among latents as one-sided as this one, from crosscoders of a pair in which
nothing differs; a dash where no such null runs were given.</dd>
<dt>genuine</dt><dd>Both nu are below their limits, in the box of the second figure: as far as this can tell, only
chat has it.</dd>
</dl>"""


def _concepts(concepts: pd.DataFrame) -> str:
    frame = concepts if isinstance(concepts.index, pd.RangeIndex) else concepts.reset_index()
    return html_table(frame) if len(frame) else "<p>none</p>"


def figure_block(figure: Any, css_class: str = "") -> str:
    """A figure as the HTML element that the page's script draws it in."""
    data = figure.to_json()  # plotly writes < and > as escapes, so that no string ends the script element
    height = figure.layout.height
    return (
        f'<div class="figure"><div class="{css_class}" style="height:{height}px"></div>'
        f'<script type="application/json">{data}</script></div>'
    )
