"""What the explaining model is asked, and how its answers are read: strictly, or not at all."""

import re
from collections.abc import Sequence

Prompt = tuple[dict[str, str], ...]
"""Messages with `role` and `content`."""

THIRDS = ("strongest", "middle", "weakest")
_EXPLANATION = "EXPLANATION:"
_VERDICT_LIST = re.compile(r"\[\s*[01](\s*,\s*[01])*\s*\]")

_LATENT = (
    "A latent is one unit of a tool that splits the internal activity of a language model into parts. It is active on "
    "some tokens of a text and silent on all others. Whether it is active on a token can depend on that token and on "
    "everything before it, and on nothing after it."
)
_EXPLAIN = f"""{_LATENT}

You find out what makes one latent active. You get excerpts of texts, one on each line, in which it is active. The \
tokens that activate it most in an excerpt are in «». The excerpts come in three groups: from the third of texts that \
activate the latent most, from the middle third, and from the third that activates it least. An excerpt may begin \
and end anywhere, \\n stands for a line break, and special tokens are written as they are.

Describe in one sentence on which tokens the latent is active: which tokens they are, and what must come before them \
if that matters. Be as specific as the excerpts allow, but cover all of them, weak ones too if they fit in. Somebody \
who sees only your sentence must be able to tell for new texts whether the latent is active. Mention neither the \
excerpts nor their marks.

You may think first. The last line of your answer must be your sentence, in this form:
{_EXPLANATION} <one sentence>"""

_VERDICTS = """You may think first. The last line of your answer must be a list with one number for every excerpt, in \
their order, each 1 for yes or 0 for no, separated by commas, in square brackets, and nothing else. Any number of \
them may be 1, also all or none."""

_DETECT = f"""{_LATENT}

You are told what activates a latent, and get numbered excerpts of texts. For every excerpt decide whether the latent \
is active on any token of it, by the description alone. An excerpt may begin and end anywhere, and \\n stands for a \
line break.

{_VERDICTS}"""

_FUZZ = f"""{_LATENT}

You are told what activates a latent, and get numbered excerpts of texts in which some tokens are in «». For every \
excerpt decide whether the tokens in «» are those that activate the latent, by the description alone: 1 if they are, \
0 if other tokens are marked instead. An excerpt may begin and end anywhere, and \\n stands for a line break.

{_VERDICTS}"""


def explanation_prompt(shown: Sequence[Sequence[str]]) -> Prompt:
    """Asks what a latent's marked texts have in common.

    Args:
        shown: texts of its strongest, middle and weakest third.
    """
    groups = [
        "\n".join([f"From the {third} third:", *texts]) for third, texts in zip(THIRDS, shown, strict=True) if texts
    ]
    return _prompt(_EXPLAIN, "\n\n".join(groups))


def detection_prompt(explanation: str, texts: Sequence[str]) -> Prompt:
    """Asks in which texts a latent with this explanation is active."""
    return _prompt(_DETECT, _description_and_texts(explanation, texts))


def fuzzing_prompt(explanation: str, texts: Sequence[str]) -> Prompt:
    """Asks in which texts the marked tokens are those on which a latent with this explanation is active."""
    return _prompt(_FUZZ, _description_and_texts(explanation, texts))


def parse_explanation(answer: str) -> str | None:
    """The sentence on the last line, or None if that line does not have the form that was asked for.

    >>> parse_explanation("Hm.\\nEXPLANATION: names of cities"), parse_explanation("names of cities")
    ('names of cities', None)
    """
    line = _last_line(answer)
    sentence = line.removeprefix(_EXPLANATION).strip()
    return sentence if line.startswith(_EXPLANATION) and sentence else None


def parse_verdicts(answer: str, n: int) -> list[bool] | None:
    """The last line's n verdicts, or None if it is anything but a list of n numbers that are 0 or 1.

    >>> parse_verdicts("So:\\n[1, 0]", 2), parse_verdicts("[1, 0]", 3), parse_verdicts("yes, no", 2)
    ([True, False], None, None)
    """
    line = _last_line(answer)
    verdicts = [verdict == "1" for verdict in re.findall("[01]", line)]
    return verdicts if _VERDICT_LIST.fullmatch(line) and len(verdicts) == n else None


def _description_and_texts(explanation: str, texts: Sequence[str]) -> str:
    numbered = [f"{number}. {text}" for number, text in enumerate(texts, start=1)]
    return "\n".join([f"The latent is active on: {explanation}", "", f"{len(texts)} excerpts:", *numbered])


def _prompt(system: str, user: str) -> Prompt:
    # In one message, because the chat templates of some models, Gemma's among them, refuse a system message.
    return ({"role": "user", "content": f"{system}\n\n{user}"},)


def _last_line(answer: str) -> str:
    lines = answer.strip().splitlines()
    return lines[-1].strip() if lines else ""
