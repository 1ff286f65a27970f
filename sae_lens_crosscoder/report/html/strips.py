"""Strips of tokens that need no script: the models' shares behind them, and the KL between the models below them.

`strips.css` draws them, and the explorer's script makes the same ones.
"""

import math
from collections.abc import Sequence
from typing import Final

from sae_lens_crosscoder.report.explorer.packing import KL_STEP
from sae_lens_crosscoder.report.explorer.records import ShownExample
from sae_lens_crosscoder.report.html.cells import cell
from sae_lens_crosscoder.report.html.inert import inert

FULL_KL: Final = 4.0
"""Nats at which a token's line is darkest."""
STRENGTH: Final = (14, 78)
"""How much of a model's colour the faintest and the strongest score have, in percent."""


def example_strip(shown: ShownExample, models: Sequence[str], scale: float) -> str:
    """An example as HTML; `scale` is the score that is drawn strongest."""
    example = shown.example
    tokens: list[str] = []
    for i, text in enumerate(shown.texts):
        score, shares = float(example.scores[i]), example.shares[i].tolist()
        said = [f"score {cell(score)}" if score > 0 else "off"]
        style = ""
        if score > 0:
            said += [f"{model}'s share {cell(share)}" for model, share in zip(models, shares, strict=True)]
            style = _stripes(score / scale, shares)
        tokens.append(_token(text, i, example.peak, said, style, None if shown.kl is None else shown.kl[i]))
    return f'<span class="strip">{"".join(tokens)}</span>'


def kl_strip(texts: Sequence[str], kl: Sequence[float], marked: int) -> str:
    """A prompt as HTML, its tokens as dark as what the models expect after them is apart; one of them is marked."""
    tokens = [_token(text, i, marked, [], "", kl[i]) for i, text in enumerate(texts)]
    return f'<span class="strip filled">{"".join(tokens)}</span>'


def token_text(text: str) -> str:
    """A token as inert HTML, its line breaks to be seen."""
    return inert(text.replace("\n", "\u21b5"))


def _stripes(strength: float, shares: Sequence[float]) -> str:
    faintest, strongest = STRENGTH
    percent, largest = faintest + (strongest - faintest) * min(1, strength), max(shares)
    parts = [round(percent * max(0, share / largest)) if largest > 0 else 0 for share in shares]
    return "".join(f"--share-{m}:{part}%;" for m, part in enumerate(parts))


def _token(text: str, place: int, marked: int, said: list[str], style: str, kl: float | None) -> str:
    classes = ["tok", *(["on"] if style else []), *(["peak"] if place == marked else [])]
    if kl is not None:
        said = [*said, f"KL after it {cell(kl)} nats"]
        if kl >= KL_STEP:
            style += f"--kl:{round(100 * math.sqrt(min(1, kl / FULL_KL)))}%;"
    read = text if place else text.lstrip() or text
    styled = f' style="{style}"' if style else ""
    return f'<span class="{" ".join(classes)}" title="{"; ".join(said)}"{styled}>{token_text(read)}</span>'
