"""Strips of tokens without scripts: shading for the activation, an underline for the KL.

`strips.css` styles them. The explorer's script draws the same strips.
"""

import math
from collections.abc import Sequence
from typing import Final

from markupsafe import Markup

from sae_lens_crosscoder.report.explorer.packing import KL_STEP
from sae_lens_crosscoder.report.explorer.records import ShownExample
from sae_lens_crosscoder.report.html.cells import cell
from sae_lens_crosscoder.report.html.inert import inert

FULL_KL: Final = 4.0
"""Nats at which a token's line is darkest."""
STRENGTH: Final = (14, 78)
"""Opacity in percent of a model's colour for the lowest and the highest activation."""
N_HUES: Final = 4
"""Colours of models, which then begin anew."""


def example_strip(shown: ShownExample, models: Sequence[str], full: float) -> Markup:
    """Render an example as HTML; `full` is the activation at full opacity."""
    example = shown.example
    tokens: list[str] = []
    for i, text in enumerate(shown.texts):
        score, shares = float(example.scores[i]), example.shares[i].tolist()
        notes = [f"activation {cell(score)}" if score > 0 else "inactive"]
        style = ""
        if score > 0:
            notes += [f"{model}'s share {cell(share)}" for model, share in zip(models, shares, strict=True)]
            style = _stripes(score / full, shares)
        alone = [] if shown.alone is None else shown.alone[i].tolist()
        notes += [f"{model} alone {cell(code)}" for model, code in zip(models, alone, strict=False) if code > 0]
        kl = None if shown.kl is None else shown.kl[i]
        tokens.append(_token(text, i, example.peak, notes, style, kl, _tracks(alone, full)))
    names = "strip" if shown.alone is None else "strip alone"
    return Markup(f'<span class="{names}" style="--models:{len(models)};">{"".join(tokens)}</span>')


def kl_strip(texts: Sequence[str], kl: Sequence[float], marked: int) -> Markup:
    """Render a prompt as HTML: the darker a token, the larger the KL after it. One token is marked."""
    tokens = [_token(text, i, marked, [], "", kl[i]) for i, text in enumerate(texts)]
    return Markup(f'<span class="strip filled">{"".join(tokens)}</span>')


def token_text(text: str) -> Markup:
    """Render a token as inert HTML with visible line breaks."""
    return Markup(inert(text.replace("\n", "\u21b5")))


def _tracks(alone: Sequence[float], full: float) -> str:
    """A line per model under a token, as dark as its code alone."""
    percents = [_percent(code / full) if code > 0 else 0 for code in alone]
    return "".join(
        f'<i class="share-{m % N_HUES}" style="--track:{m};--code:{percent}%;"></i>'
        for m, percent in enumerate(percents)
        if percent
    )


def _percent(strength: float) -> int:
    faintest, strongest = STRENGTH
    return round(faintest + (strongest - faintest) * min(1, strength))


def _stripes(strength: float, shares: Sequence[float]) -> str:
    faintest, strongest = STRENGTH
    percent, largest = faintest + (strongest - faintest) * min(1, strength), max(shares)
    parts = [round(percent * max(0, share / largest)) if largest > 0 else 0 for share in shares]
    return "".join(f"--share-{m}:{part}%;" for m, part in enumerate(parts))


def _token(text: str, place: int, marked: int, notes: list[str], style: str, kl: float | None, tracks: str = "") -> str:
    classes = ["tok", *(["on"] if style else []), *(["peak"] if place == marked else [])]
    if kl is not None:
        notes = [*notes, f"KL after it {cell(kl)} nats"]
        if kl >= KL_STEP:
            style += f"--kl:{round(100 * math.sqrt(min(1, kl / FULL_KL)))}%;"
    shown = text if place else text.lstrip() or text
    styled = f' style="{style}"' if style else ""
    return f'<span class="{" ".join(classes)}" title="{"; ".join(notes)}"{styled}>{token_text(shown)}{tracks}</span>'
