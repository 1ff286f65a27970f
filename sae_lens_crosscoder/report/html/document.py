"""Render pages from templates: files that make no network request and run only the scripts named by hash."""

import base64
import hashlib
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from sae_lens_crosscoder.analysis.diagnosis.verdict import NU_ERROR_LIMIT, NU_FREE_LIMIT, NU_RECONSTRUCTION_LIMIT
from sae_lens_crosscoder.report.html.cells import cell, html_table, manifest_list
from sae_lens_crosscoder.report.html.colours import colour_rules
from sae_lens_crosscoder.report.html.inert import inert
from sae_lens_crosscoder.storage.atomic import write_text_atomically

if TYPE_CHECKING:
    import jinja2


def render(template: str, **values: Any) -> str:
    """Render a template, such as `pages/report.html`. Every value that is not `Markup` is made inert."""
    return _environment().get_template(template).render(**values)


def render_page(
    template: str,
    *,
    title: str,
    style: str,
    scripts: Sequence[str],
    inline_styles: bool = False,
    connects: bool = False,
    **values: Any,
) -> str:
    """Render a whole HTML page whose Content-Security-Policy forbids all requests.

    Args:
        scripts: the texts of all scripts that the template includes as `scripts[i]`. No other script can run.
        inline_styles: allow styles other than `style`, as plotly needs.
        connects: allow requests to the server that the page comes from.
    """
    styles = "'unsafe-inline'" if inline_styles else _source_hash(style)
    connections = "connect-src 'self'; " if connects else ""
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_source_hash, scripts))}; style-src {styles}; "
        f"img-src data: blob:; {connections}base-uri 'none'; form-action 'none'"
    )
    marked = {"policy": Markup(policy), "style": Markup(style), "scripts": [Markup(script) for script in scripts]}
    return render(template, title=title, **marked, **values)


def render_figure_page(template: str, title: str, **values: Any) -> str:
    """Render a page with plotly figures; its template extends `html/figure_page.html`."""
    from plotly.offline import get_plotlyjs

    return render_page(
        template,
        title=title,
        style="\n" + resource("html/page.css") + colour_rules("background"),
        scripts=[get_plotlyjs().replace("\r\n", "\n"), resource("html/page.js")],
        inline_styles=True,
        **values,
    )


def write_document(text: str, path: str | Path) -> Path:
    """Write a page, and create the folder it is in."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # In bytes: the policy names scripts by hash, and "\r\n" would change it.
    write_text_atomically(text, path)
    return path


def json_text(value: Any) -> Markup:
    """JSON for a script element; no string in it can end the element."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


def resource(name: str) -> str:
    """The text of a file in `report`, such as `html/page.css`."""
    return files("sae_lens_crosscoder.report").joinpath(name).read_text(encoding="utf-8")


@cache
def _environment() -> "jinja2.Environment":
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sae_lens_crosscoder", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = cell
    values: dict[str, Any] = {
        "html_table": html_table,
        "manifest_list": manifest_list,
        "nu_error_limit": NU_ERROR_LIMIT,
        "nu_reconstruction_limit": NU_RECONSTRUCTION_LIMIT,
        "nu_free_limit": NU_FREE_LIMIT,
    }
    environment.globals.update(values)
    return environment


def _finalize(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(inert(value))


def _source_hash(text: str) -> str:
    """The name of a script or style in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
