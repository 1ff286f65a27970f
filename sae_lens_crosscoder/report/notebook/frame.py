"""The frame of a notebook's views: their style, which reaches nothing else on the page."""

from sae_lens_crosscoder.report.html.document import colour_rules, resource


def framed(body: str) -> str:
    """A view as HTML. All its rules are nested in its own class, and its ink is the notebook's, in light and dark."""
    rules = resource("html/strips.css") + resource("notebook/notebook.css") + colour_rules("--hue")
    return f'<div class="slc-view"><style>.slc-view {{\n{rules}}}</style>\n{body}\n</div>'
