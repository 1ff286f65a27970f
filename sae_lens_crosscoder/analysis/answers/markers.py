"""Words of prompts that tell where a change shows: chosen on some prompts, counted on the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from jaxtyping import Bool
from torch import Tensor

from sae_lens_crosscoder.analysis.answers.phrases import START, words_of
from sae_lens_crosscoder.arguments import validate_arguments

_MOST_WORDS = 8
_LEAST_GAIN = 0.02


@dataclass(frozen=True)
class Markers:
    """Words any of which marks a prompt, with counts on held-out prompts."""

    words: tuple[str, ...]
    """A word, or two in a row; none if no word marks the prompts better than marking all of them would."""
    n_marked_with: int
    """Marked prompts with the change."""
    n_marked: int
    n_with: int
    n_prompts: int

    @property
    def text(self) -> str:
        """The words in quotes.

        >>> Markers(("burn", "hurt the"), 3, 4, 5, 20).text
        '“burn” or “hurt the”'
        """
        return " or ".join(f"\u201c{word}\u201d" for word in self.words)


@validate_arguments
def find_markers(prompts: Sequence[str], positive: Bool[Tensor, " _"], held_out: Bool[Tensor, " _"]) -> Markers:
    """Choose words that mark the positive prompts, each for the largest F1 with those before it.

    Args:
        prompts: their texts.
        positive: True for prompts with the change.
        held_out: True for prompts to count on; words are chosen on the others.

    Raises:
        ValueError: for arguments of different lengths.
    """
    if not len(prompts) == len(positive) == len(held_out):
        raise ValueError(
            f"prompts has {len(prompts)} entries, positive {len(positive)} and held_out {len(held_out)}. Pass one of "
            "each per prompt."
        )
    grams = [_grams(prompt) for prompt in prompts]
    is_positive, held = positive.tolist(), held_out.tolist()
    chosen_on = [i for i in range(len(prompts)) if not held[i]]
    at: dict[str, set[int]] = {}
    for i in chosen_on:
        for gram in grams[i]:
            at.setdefault(gram, set()).add(i)
    with_change = {i for i in chosen_on if is_positive[i]}
    words: list[str] = []
    marked: set[int] = set()
    least = _f1(set(chosen_on), with_change)
    # Words at no prompt with the change can only lower F1.
    candidates = {gram: rows for gram, rows in at.items() if rows & with_change}
    while candidates and len(words) < _MOST_WORDS:
        best = max(candidates, key=lambda gram: (_f1(marked | candidates[gram], with_change), -len(gram), gram))
        f1 = _f1(marked | candidates[best], with_change)
        if f1 < least + _LEAST_GAIN:
            break
        words.append(best)
        marked |= candidates.pop(best)
        least = f1
    counted = [i for i in range(len(prompts)) if held[i]]
    is_marked = {i for i in counted if grams[i] & set(words)}
    return Markers(
        tuple(words),
        n_marked_with=sum(is_positive[i] for i in is_marked),
        n_marked=len(is_marked),
        n_with=sum(is_positive[i] for i in counted),
        n_prompts=len(counted),
    )


def _grams(prompt: str) -> set[str]:
    words = words_of(prompt)[1:]
    pairs = {f"{first} {second}" for first, second in pairwise(words)}
    return {word for word in words if word != START} | pairs


def _f1(marked: set[int], positive: set[int]) -> float:
    return 2 * len(marked & positive) / max(1, len(marked) + len(positive))
