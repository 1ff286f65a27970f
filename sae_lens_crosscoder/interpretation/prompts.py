"""Prompts for the explaining model, and strict parsing of its answers."""

import re
from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

Prompt = tuple[dict[str, str], ...]
"""Messages with `role` and `content`."""

THIRDS = ("strongest", "middle", "weakest")
_EXPLANATION = "EXPLANATION:"
_VERDICT_LIST = re.compile(r"\[\s*[01](\s*,\s*[01])*\s*\]")
_templates = Environment(  # plain text, so nothing is escaped
    loader=PackageLoader(__package__ or "", "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)


def explanation_prompt(shown: Sequence[Sequence[str]]) -> Prompt:
    """Ask what a latent's marked texts have in common.

    Args:
        shown: texts of its strongest, middle and weakest third.
    """
    groups = [(third, texts) for third, texts in zip(THIRDS, shown, strict=True) if texts]
    return _prompt("explanation", groups=groups, marker=_EXPLANATION)


def detection_prompt(explanation: str, texts: Sequence[str]) -> Prompt:
    """Ask in which texts a latent with this explanation is active."""
    return _prompt("detection", explanation=explanation, texts=texts)


def fuzzing_prompt(explanation: str, texts: Sequence[str]) -> Prompt:
    """Ask in which texts the marked tokens are those on which a latent with this explanation is active."""
    return _prompt("fuzzing", explanation=explanation, texts=texts)


def parse_explanation(answer: str) -> str | None:
    """Return the sentence on the last line, or None if that line does not have the requested form.

    >>> parse_explanation("Hm.\\nEXPLANATION: names of cities"), parse_explanation("names of cities")
    ('names of cities', None)
    """
    line = _last_line(answer)
    sentence = line.removeprefix(_EXPLANATION).strip()
    return sentence if line.startswith(_EXPLANATION) and sentence else None


def parse_verdicts(answer: str, n: int) -> list[bool] | None:
    """Return the last line's n verdicts, or None unless it is a list of n numbers that are 0 or 1.

    >>> parse_verdicts("So:\\n[1, 0]", 2), parse_verdicts("[1, 0]", 3), parse_verdicts("yes, no", 2)
    ([True, False], None, None)
    """
    line = _last_line(answer)
    verdicts = [verdict == "1" for verdict in re.findall("[01]", line)]
    return verdicts if _VERDICT_LIST.fullmatch(line) and len(verdicts) == n else None


def _prompt(template: str, **values: Any) -> Prompt:
    # One message, because the chat templates of some models, Gemma's among them, refuse a system message.
    text = _templates.get_template(f"{template}.jinja").render(**values)
    return ({"role": "user", "content": text.removesuffix("\n")},)


def _last_line(answer: str) -> str:
    lines = answer.strip().splitlines()
    return lines[-1].strip() if lines else ""
