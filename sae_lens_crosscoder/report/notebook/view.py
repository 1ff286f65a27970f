"""Render notebook views: HTML without scripts, whose styles apply to nothing else on the page."""

from typing import Any

from markupsafe import Markup

from sae_lens_crosscoder.report.explorer.strips import example_strip, kl_strip, token_text
from sae_lens_crosscoder.report.html.colours import colour_rules
from sae_lens_crosscoder.report.html.document import render, resource


def render_view(template: str, **values: Any) -> str:
    """Render a template that extends `notebook/view.html`, in the notebook's own text colour."""
    style = resource("explorer/strips.css") + resource("notebook/notebook.css") + colour_rules("--hue")
    helpers = {"example_strip": example_strip, "kl_strip": kl_strip, "token_text": token_text}
    return render(template, style=Markup(style), **helpers, **values).strip()
