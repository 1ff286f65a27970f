"""Phrases that one model's answers have and the other's lack: found on some prompts, tested on the others."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lens_crosscoder.analysis.changed.significance import Q_LIMIT, false_discovery_rates
from sae_lens_crosscoder.arguments import validate_arguments

Phrase = tuple[str, ...]
START = "^"
"""Stands before the first word of an answer, so that an opening is a phrase of its own."""
LONGEST = 8
"""Words of the longest phrase."""
LEAST_NET = 5
"""A phrase is tested if at least so many more answers to prompts that are not held out have it in one model."""
_LEAST_ONE_SIDED = 0.5
_MOST_TESTED = 25
_MOST_AGAINST = 0.2
_LEAST_SHARED = 0.8
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")


@dataclass(frozen=True)
class PhraseChange:
    """A phrase that one model's answers have and the other's lack.

    Prompts at which an earlier phrase of the same model was found are left out, so that every answer counts once.
    """

    phrase: Phrase
    writer: Literal["base", "chat"]
    """The model whose answers have the phrase."""
    prompts: tuple[int, ...]
    """Prompts, held out or not, to which the writer alone answers with it."""
    n_with: int
    """Held-out prompts to which the writer alone answers with it."""
    n_against: int
    """Held-out prompts to which the other model alone does."""
    n_held_out: int
    """Held-out prompts tested."""
    p_value: float
    """One-sided sign test on held-out prompts: `n_with` against `n_against`."""
    q_value: float = float("nan")
    """False discovery rate among all phrases tested (Benjamini and Hochberg 1995)."""
    whole: Phrase = ()
    """The phrase with the words around it that most of these answers share."""

    @property
    def is_new(self) -> bool:
        """True if held-out answers differ with a q of at most 0.05, and at most a fifth of them the other way round.

        A new answer, not one that grew more frequent.
        """
        return is_mostly_new(self.q_value, self.n_with, self.n_against)

    @property
    def text(self) -> str:
        """The phrase as text.

        >>> PhraseChange(("^", "no", ",", "it", "is"), "chat", (), 0, 0, 0, 1.0).text
        'no, it is'
        """
        return _as_text(self.phrase)

    @property
    def whole_text(self) -> str:
        """The phrase as text, with the words around it that most of these answers share."""
        return _as_text(self.whole or self.phrase)

    @validate_arguments
    def is_in(self, answer: str) -> bool:
        """True for an answer with the phrase, at its start if the phrase is an opening."""
        return self.beginning(answer) is not None

    @validate_arguments
    def beginning(self, answer: str) -> str | None:
        """The answer up to the end of the phrase; None if it does not have the phrase."""
        words, n = words_of(answer), len(self.phrase)
        ends = [0, *(match.end() for match in _WORD.finditer(answer))]
        found = [i + n for i in range(len(words) - n + 1) if tuple(words[i : i + n]) == self.phrase]
        return answer[: ends[found[0] - 1]] if found else None


def is_mostly_new(q_value: float, n_with: int, n_against: int) -> bool:
    """True if answers differ with a q of at most 0.05, and at most a fifth of them the other way round."""
    return q_value <= Q_LIMIT and n_against <= _MOST_AGAINST * (n_with + n_against)


def _as_text(phrase: Phrase) -> str:
    return re.sub(r" ([.,!?;:)])", r"\1", " ".join(word for word in phrase if word != START))


def words_of(answer: str) -> list[str]:
    """Words and punctuation of an answer, after the mark of its start.

    >>> words_of("It's late.")
    ['^', "It's", 'late', '.']
    """
    return [START, *_WORD.findall(answer)]


@validate_arguments
def find_phrases(
    base_answers: Sequence[str], chat_answers: Sequence[str], held_out: Bool[Tensor, " _"]
) -> list[PhraseChange]:
    """Find phrases that fine-tuning brought into answers, then those it removed, and test each on held-out prompts.

    One phrase is taken after the other: the one that accounts for most words of one model's answers to prompts that are
    not held out, beyond the other model's. Prompts with it are then left out, in both parts. A removed phrase is left
    out if most of its prompts get a new one: it is what the new one replaced. Sampled answers are needed for a fair
    test (`AnswerSettings(temperature=1)`): between nearly equal tokens, two models that hardly differ choose greedily
    in opposite ways at every prompt.

    Args:
        base_answers, chat_answers: one answer per prompt; no prompt is given twice.
        held_out: True for prompts that the test is made on.

    Raises:
        ValueError: for lists of different lengths.
    """
    if not len(base_answers) == len(chat_answers) == len(held_out):
        raise ValueError(
            f"base_answers has {len(base_answers)} entries, chat_answers {len(chat_answers)} and held_out "
            f"{len(held_out)}. Pass one of each per prompt."
        )
    words = {
        "base": [words_of(answer) for answer in base_answers],
        "chat": [words_of(answer) for answer in chat_answers],
    }
    base, chat = ([_phrases_in(answer) for answer in words[model]] for model in ("base", "chat"))
    gained = _found("chat", chat, base, held_out.tolist())
    lost = _found("base", base, chat, held_out.tolist())
    changes = [*gained, *(change for change in lost if not _is_replaced(change, gained))]
    q_values = false_discovery_rates(torch.tensor([change.p_value for change in changes], dtype=torch.float64))
    return [
        replace(change, q_value=q, whole=_extended(change.phrase, [words[change.writer][i] for i in change.prompts]))
        for change, q in zip(changes, q_values.tolist(), strict=True)
    ]


def _found(
    writer: Literal["base", "chat"], own: list[set[Phrase]], other: list[set[Phrase]], held_out: list[bool]
) -> list[PhraseChange]:
    """Phrases of one model's answers, each tested on the prompts that those before it leave."""
    left = set(range(len(own)))
    changes: list[PhraseChange] = []
    while len(changes) < _MOST_TESTED:
        phrase = _best_phrase(own, other, [i for i in left if not held_out[i]])
        if phrase is None:
            break
        changes.append(_tested(phrase, writer, own, other, left, held_out))
        left -= {i for i in left if phrase in own[i]}
    return changes


def _is_replaced(lost: PhraseChange, gained: Sequence[PhraseChange]) -> bool:
    """True if most prompts that lost a phrase have a new one that is significant by itself."""
    new = {i for change in gained if change.p_value <= Q_LIMIT for i in change.prompts}
    return 2 * len(new.intersection(lost.prompts)) > len(lost.prompts)


def _extended(phrase: Phrase, answers: Sequence[list[str]]) -> Phrase:
    """The phrase with the words before and after it that nearly all answers share, at its first place in each."""
    n = len(phrase)
    starts = [next(i for i in range(len(words)) if tuple(words[i : i + n]) == phrase) for words in answers]
    return (*_shared(answers, starts, -1)[::-1], *phrase, *_shared(answers, [i + n - 1 for i in starts], 1))


def _shared(answers: Sequence[list[str]], places: Sequence[int], step: int) -> list[str]:
    """Words one step after the other, as long as nearly all answers go on with the same."""
    found: list[str] = []
    while True:
        at = step * (len(found) + 1)
        following = [
            words[place + at] if 0 <= place + at < len(words) else None
            for words, place in zip(answers, places, strict=True)
        ]
        ((word, n),) = Counter(following).most_common(1)
        if word is None or n < _LEAST_SHARED * len(answers):
            return found
        found.append(word)


def _phrases_in(words: list[str]) -> set[Phrase]:
    lengths = range(1, min(LONGEST, len(words)) + 1)
    found = {tuple(words[i : i + n]) for n in lengths for i in range(len(words) - n + 1)}
    return found - {(START,)}


def _best_phrase(own: list[set[Phrase]], other: list[set[Phrase]], prompts: list[int]) -> Phrase | None:
    """The phrase with the largest number of words times net prompts; None if none is at enough prompts."""
    n_with: Counter[Phrase] = Counter()
    n_against: Counter[Phrase] = Counter()
    for i in prompts:
        n_with.update(own[i] - other[i])
        n_against.update(other[i] - own[i])
    best: tuple[int, Phrase] | None = None
    for phrase, n in n_with.items():
        net = n - n_against[phrase]
        if net < max(LEAST_NET, _LEAST_ONE_SIDED * (n + n_against[phrase])):
            continue
        score = (net * len(phrase), phrase)
        best = score if best is None else max(best, score)
    return None if best is None else best[1]


def _tested(
    phrase: Phrase,
    writer: Literal["base", "chat"],
    own: list[set[Phrase]],
    other: list[set[Phrase]],
    left: set[int],
    held_out: list[bool],
) -> PhraseChange:
    from scipy.stats import binomtest

    alone = [i for i in sorted(left) if phrase in own[i] and phrase not in other[i]]
    tested = [i for i in left if held_out[i]]
    n_with = sum(held_out[i] for i in alone)
    n_against = sum(phrase in other[i] and phrase not in own[i] for i in tested)
    n = n_with + n_against
    p_value = float(binomtest(n_with, n, 0.5, alternative="greater").pvalue) if n else 1.0
    return PhraseChange(phrase, writer, tuple(alone), n_with, n_against, len(tested), p_value)
