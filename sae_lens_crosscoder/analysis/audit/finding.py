"""Finding: one change of behaviour, with its evidence and the sentence that the evidence makes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.markers import Markers
from sae_lens_crosscoder.analysis.audit.carriers import Carriers
from sae_lens_crosscoder.analysis.audit.effects import CausalEffect

LEAST_SHARE = 0.5
"""Share of chat - base that the latents must write on prompts with a change."""
_CONTROL_SHARE = 0.5
"""Of the held-out prompts on which chat shows a change: if the control shows it on so many, the change is its too."""
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
    is_everywhere: bool = False
    """True if nearly all prompts show the change: its carriers are those that set the decisions apart from the middle
    of the same prompts."""

    @property
    def is_traced(self) -> bool:
        """True if latents write half of the change, tell its prompts apart, and have its effect when added to base."""
        found = self.carriers
        is_carried = found.written >= LEAST_SHARE and found.tells_apart
        return is_carried and self.effect is not None and self.effect.is_causal


@dataclass(frozen=True, kw_only=True)
class ControlAnswers:
    """Held-out prompts on which a model's answers have a change against base's: a new phrase, or a lost one."""

    n_control: int
    n_chat: int

    @classmethod
    def counted(
        cls, behaviour: Behaviour, base: Sequence[str], control: Sequence[str], chat: Sequence[str]
    ) -> "ControlAnswers":
        """Count answers to held-out prompts, of which all have one."""

        def n_shown(answers: Sequence[str]) -> int:
            pairs = zip(base, answers, strict=True)
            if behaviour.writer == "base":
                return sum(behaviour.is_in(before) and not behaviour.is_in(after) for before, after in pairs)
            return sum(behaviour.is_in(after) and not behaviour.is_in(before) for before, after in pairs)

        return cls(n_control=n_shown(control), n_chat=n_shown(chat))


@dataclass(frozen=True, kw_only=True)
class Label:
    """A language model's words for a latent: no evidence, but to be read beside it."""

    latent: int
    text: str
    detection: float
    """Balanced accuracy with which the same model tells contexts of the latent from similar ones by the label alone."""
    interpreter: str


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One change of behaviour."""

    behaviour: Behaviour
    markers: Markers
    examples: tuple[Example, ...]
    control: ControlAnswers | None = None
    """None for an audit without a control."""
    evidence: tuple[Evidence, ...] = ()
    """Of each crosscoder; the first is shown."""
    labels: tuple[Label, ...] = ()
    """Of the first crosscoder's carriers."""

    @property
    def is_in_control(self) -> bool:
        """True if the control shows the change at least half as often as chat."""
        return self.control is not None and self.control.n_control >= _CONTROL_SHARE * self.control.n_chat

    @property
    def n_traced(self) -> int:
        """Number of crosscoders that trace the change to latents."""
        return sum(evidence.is_traced for evidence in self.evidence)

    @property
    def is_claimed(self) -> bool:
        """True if the answers differ, and most crosscoders trace the change to latents with an effect.

        What the control shows too is no finding: it came with the topics.
        """
        return self.behaviour.is_new and not self.is_in_control and 2 * self.n_traced > len(self.evidence)

    @property
    def latents(self) -> tuple[int, ...]:
        """Carriers in the first crosscoder."""
        return self.evidence[0].carriers.latents if self.evidence else ()

    @property
    def sentence(self) -> str:
        """The change in words; every number in it is in `to_dict()`."""
        parts = [self._on_answers(), self._on_prompts(), self._on_control()]
        if self.evidence:
            parts += [self._on_latents(self.evidence[0]), self._on_effect(self.evidence[0])]
            parts.append(f"Traced in {self.n_traced} of {len(self.evidence)} crosscoders.")
        return " ".join(part for part in parts if part)

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON can hold it."""
        return {
            "sentence": self.sentence,
            "text": self.behaviour.text,
            "writer": self.behaviour.writer,
            "latents": list(self.latents),
            "q_value": self.behaviour.q_value,
            "n_traced": self.n_traced,
            "evidence": {
                "answers": self.behaviour.to_dict(),
                "prompts": asdict(self.markers),
                "control": None if self.control is None else asdict(self.control),
                "crosscoders": [{**asdict(each), "is_traced": each.is_traced} for each in self.evidence],
            },
            "examples": [asdict(example) for example in self.examples],
            "labels": [asdict(label) for label in self.labels],
        }

    def _on_answers(self) -> str:
        behaviour = self.behaviour
        verb = "answers with" if behaviour.writer == "chat" else "no longer answers with"
        first, *rest = behaviour.wordings
        often = f" (mostly \u201c{first.whole_text}\u201d)" if first.whole_text != first.text else ""
        others = "".join(f" or \u201c{change.text}\u201d" for change in rest)
        one_of = "one of them" if rest else "it"
        each = f" ({', '.join(str(change.n_with) for change in behaviour.wordings)})" if rest else ""
        against = f", and {behaviour.n_against} the other way round" if behaviour.n_against else ""
        return (
            f"The chat model {verb} \u201c{first.text}\u201d{often}{others}: {behaviour.n_with} of "
            f"{behaviour.n_held_out} held-out prompts show {one_of} in one model alone{each}{against} (q = "
            f"{behaviour.q_value:.2g})."
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

    def _on_control(self) -> str:
        if self.control is None:
            return ""
        n_control, n_chat = self.control.n_control, self.control.n_chat
        return f"On held-out prompts the control shows it {n_control} times, chat {n_chat} times."

    def _on_latents(self, evidence: Evidence) -> str:
        carriers = evidence.carriers
        other = "base" if self.behaviour.writer == "chat" else "the chat model"
        shown = ", ".join(str(latent) for latent in carriers.latents[:_LATENTS_SHOWN])
        more = len(carriers.latents) - _LATENTS_SHOWN
        names = f"{shown} and {more} more" if more > 0 else shown
        if not names:
            return f"No latent sets these {'beginnings of answers' if evidence.is_everywhere else 'prompts'} apart."
        noun, write, tell = (
            ("Latent", "writes", "tells") if len(carriers.latents) == 1 else ("Latents", "write", "tell")
        )
        area = f"AUROC {carriers.auroc:.2f}, for random prompts at most {carriers.auroc_by_chance:.2f}"
        if evidence.is_everywhere:
            return (
                f"Nearly all prompts show it. {noun} {names} {write} {carriers.share:.2f} of what sets the beginnings "
                f"of answers apart from the middle of prompts, and {tell} the two apart ({area})."
            )
        return (
            f"{noun} {names} {write} {carriers.share:.2f} of what sets these prompts apart, and {tell} them from "
            f"others ({area}); {other} has {carriers.presence:.2f} of it ({carriers.presence_low:.2f} to "
            f"{carriers.presence_high:.2f})."
        )

    def _on_effect(self, evidence: Evidence) -> str:
        effect, n_shared = evidence.effect, len(evidence.carriers.shared)
        if effect is None:
            return "Their effect was not measured."
        others = "the middle of prompts needs" if evidence.is_everywhere else "other prompts need"
        noun = f"latent that {others}" if n_shared == 1 else f"latents that {others}"
        with_shared = f" with {n_shared} {noun} too," if n_shared else ","
        without = f", without them {effect.brought_back_shared:.2f}" if n_shared else ""
        return (
            f"Added to base{with_shared} they bring back {effect.brought_back:.2f} of the KL at the answer's first "
            f"token (random latents or noise {effect.brought_back_control:.2f}{without}), and base shows the phrase in "
            f"{effect.rate:.2f} of the cases (before {effect.rate_base:.2f}, by controls {effect.rate_control:.2f}, "
            f"chat {effect.rate_chat:.2f})."
        )
