"""HTML files that ask the network for nothing and run nothing but their own scripts, which they name by hash."""

import base64
import hashlib
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.report.figures.panels import COLOURS
from sae_lens_crosscoder.report.html.inert import inert


def document(
    title: str, body: str, *, style: str, scripts: Sequence[str], head: str = "", inline_styles: bool = False
) -> str:
    """A whole HTML page, whose Content-Security-Policy lets no request out.

    Args:
        scripts: the texts of all scripts that `script_element` put into the head and the body; no other runs.
        inline_styles: whether other styles than `style` may stand in the page, as plotly's do.
    """
    styles = "'unsafe-inline'" if inline_styles else _hash(style)
    policy = (
        f"default-src 'none'; script-src {' '.join(map(_hash, scripts))}; style-src {styles}; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{inert(title)}</title>
<link rel="icon" href="data:,">
<style>{style}</style>
{head}</head>
<body>
{body}
</body>
</html>
"""


def write_document(path: str | Path, text: str) -> Path:
    """Write a page, and the folder it is in."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # newline: the policy names scripts by hash, and "\r\n" would change it.
    path.write_text(text, encoding="utf-8", newline="\n")
    return path


def script_element(script: str) -> str:
    """A script that runs if `document` is told of it."""
    return f"<script>{script}</script>"


def json_element(value: Any, name: str) -> str:
    """Data as JSON, which the page's script finds by name; no string in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    return f'<script type="application/json" id="{name}">{text}</script>'


def colour_rules(declared: str) -> str:
    """A CSS rule per class and verdict that gives `declared`, such as `background`, its colour."""
    return "".join(f".{name} {{ {declared}: {hue}; }}\n" for name, hue in COLOURS.items())


def resource(name: str) -> str:
    """The text of a file in `report`, such as `html/page.css`."""
    return files("sae_lens_crosscoder.report").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """A script's or a style's name in a Content-Security-Policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
