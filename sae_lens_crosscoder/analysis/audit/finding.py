"""Finding: one change of behaviour, with its evidence and the sentence that the evidence makes."""

from dataclasses import asdict, dataclass
from typing import Any

from sae_lens_crosscoder.analysis.answers.markers import Markers
from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange
from sae_lens_crosscoder.analysis.audit.carriers import Carriers
from sae_lens_crosscoder.analysis.audit.effects import CausalEffect
from sae_lens_crosscoder.analysis.changed.significance import Q_LIMIT

LEAST_SHARE = 0.5
"""Share of chat - base that the latents must write on prompts with a change."""
MOST_AGAINST = 0.2
"""Share of the answers with a phrase that may be the other model's: a new answer, not one that grew more frequent."""
_LATENTS_SHOWN = 4


@dataclass(frozen=True)
class Example:
    """A held-out prompt with the change, and both models' sampled answers."""

    prompt: str
    base: str
    chat: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Evidence of one crosscoder for a change."""

    seed: int
    carriers: Carriers
    effect: CausalEffect | None = None
    """None if the budget ended before."""

    @property
    def is_traced(self) -> bool:
        """True if latents write half of the change, and adding them to base has its effect."""
        return self.carriers.written >= LEAST_SHARE and self.effect is not None and self.effect.is_causal


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One change of behaviour."""

    change: PhraseChange
    markers: Markers
    examples: tuple[Example, ...]
    evidence: tuple[Evidence, ...] = ()
    """Of each crosscoder; the first is shown."""

    @property
    def is_in_answers(self) -> bool:
        """True if the answers to held-out prompts differ with a q of at most 0.05, and hardly the other way round."""
        n_with, n_against = self.change.n_with, self.change.n_against
        return self.change.q_value <= Q_LIMIT and n_against <= MOST_AGAINST * (n_with + n_against)

    @property
    def n_traced(self) -> int:
        """Number of crosscoders that trace the change to latents."""
        return sum(evidence.is_traced for evidence in self.evidence)

    @property
    def is_claimed(self) -> bool:
        """True if the answers differ, and most crosscoders trace the change to latents with an effect."""
        return self.is_in_answers and 2 * self.n_traced > len(self.evidence)

    @property
    def latents(self) -> tuple[int, ...]:
        """Carriers in the first crosscoder."""
        return self.evidence[0].carriers.latents if self.evidence else ()

    @property
    def sentence(self) -> str:
        """The change in words; every number in it is in `to_dict()`."""
        parts = [self._on_answers(), self._on_prompts()]
        if self.evidence:
            parts += [self._on_latents(self.evidence[0].carriers), self._on_effect(self.evidence[0])]
            parts.append(f"Traced in {self.n_traced} of {len(self.evidence)} crosscoders.")
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON can hold it."""
        change = asdict(self.change)
        del change["prompts"]
        return {
            "sentence": self.sentence,
            "text": self.change.text,
            "writer": self.change.writer,
            "latents": list(self.latents),
            "q_value": self.change.q_value,
            "n_traced": self.n_traced,
            "evidence": {
                "answers": change,
                "prompts": asdict(self.markers),
                "crosscoders": [{**asdict(each), "is_traced": each.is_traced} for each in self.evidence],
            },
            "examples": [asdict(example) for example in self.examples],
        }

    def _on_answers(self) -> str:
        change = self.change
        verb = "answers with" if change.writer == "chat" else "no longer answers with"
        against = f", and {change.n_against} the other way round" if change.n_against else ""
        return (
            f"The chat model {verb} \u201c{change.text}\u201d: {change.n_with} of {change.n_held_out} held-out prompts "
            f"show it in one model alone{against} (q = {change.q_value:.2g})."
        )

    def _on_prompts(self) -> str:
        marks = self.markers
        if not marks.words:
            return "No words mark these prompts."
        n_others = marks.n_prompts - marks.n_marked
        return (
            f"Prompts with {marks.text} show it in {marks.n_marked_with} of {marks.n_marked} cases, others in "
            f"{marks.n_with - marks.n_marked_with} of {n_others:,}."
        )

    def _on_latents(self, carriers: Carriers) -> str:
        other = "base" if self.change.writer == "chat" else "the chat model"
        shown = ", ".join(str(latent) for latent in carriers.latents[:_LATENTS_SHOWN])
        more = len(carriers.latents) - _LATENTS_SHOWN
        names = f"{shown} and {more} more" if more > 0 else shown
        if not names:
            return "No latent sets these prompts apart."
        one = len(carriers.latents) == 1
        return (
            f"{'Latent' if one else 'Latents'} {names} {'writes' if one else 'write'} {carriers.share:.2f} of what "
            f"sets these prompts apart; {other} has {carriers.presence:.2f} of it ({carriers.presence_low:.2f} to "
            f"{carriers.presence_high:.2f})."
        )

    def _on_effect(self, evidence: Evidence) -> str:
        effect, n_shared = evidence.effect, len(evidence.carriers.shared)
        if effect is None:
            return "Their effect was not measured."
        noun = "latent that other prompts need" if n_shared == 1 else "latents that other prompts need"
        with_shared = f" with {n_shared} {noun} too," if n_shared else ","
        without = f", without them {effect.brought_back_shared:.2f}" if n_shared else ""
        return (
            f"Added to base{with_shared} they bring back {effect.brought_back:.2f} of the KL at the answer's first "
            f"token (random latents or noise {effect.brought_back_control:.2f}{without}), and base shows the phrase in "
            f"{effect.rate:.2f} of the cases (before {effect.rate_base:.2f}, by controls {effect.rate_control:.2f}, "
            f"chat {effect.rate_chat:.2f})."
        )
