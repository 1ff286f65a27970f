"""Behaviour: a change of the answers, in one wording or in several."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange, is_mostly_new
from sae_lens_crosscoder.arguments import validate_arguments


@dataclass(frozen=True)
class Behaviour:
    """A phrase that one model's answers have and the other's lack, or several that stand for one another.

    Every answer counts once: prompts with an earlier phrase were left out where a later one was tested.
    """

    wordings: tuple[PhraseChange, ...]
    """The most frequent first; all of one writer."""

    @property
    def writer(self) -> Literal["base", "chat"]:
        """The model whose answers have the phrases."""
        return self.wordings[0].writer

    @property
    def prompts(self) -> tuple[int, ...]:
        """Prompts, held out or not, to which the writer alone answers with one of the phrases."""
        return tuple(sorted({i for change in self.wordings for i in change.prompts}))

    @property
    def n_with(self) -> int:
        """Held-out prompts to which the writer alone answers with one of the phrases."""
        return sum(change.n_with for change in self.wordings)

    @property
    def n_against(self) -> int:
        """Held-out prompts to which the other model alone does."""
        return sum(change.n_against for change in self.wordings)

    @property
    def n_held_out(self) -> int:
        """Held-out prompts on which the first phrase was tested."""
        return max(change.n_held_out for change in self.wordings)

    @property
    def q_value(self) -> float:
        """The largest false discovery rate of the phrases."""
        return max(change.q_value for change in self.wordings)

    @property
    def is_new(self) -> bool:
        """True if every phrase differs on held-out prompts, and at most a fifth of the answers the other way round."""
        return is_mostly_new(self.q_value, self.n_with, self.n_against)

    @property
    def text(self) -> str:
        """The most frequent phrase as text."""
        return self.wordings[0].text

    @validate_arguments
    def is_in(self, answer: str) -> bool:
        """True for an answer with one of the phrases."""
        return any(change.is_in(answer) for change in self.wordings)

    @validate_arguments
    def beginning(self, answer: str) -> str | None:
        """The answer up to the first end of a phrase; None if it has none of them."""
        found = [change.beginning(answer) for change in self.wordings]
        return min((text for text in found if text is not None), key=len, default=None)

    def to_dict(self) -> dict[str, Any]:
        """Counts and wordings as JSON can hold them, without the prompts."""
        numbers = {name: getattr(self, name) for name in ("n_with", "n_against", "n_held_out", "q_value")}
        wordings = [asdict(change) | {"text": change.text, "whole_text": change.whole_text} for change in self.wordings]
        for wording in wordings:
            del wording["prompts"]
        return {**numbers, "wordings": wordings}
