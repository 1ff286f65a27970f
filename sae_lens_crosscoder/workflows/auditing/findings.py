"""Findings of an audit: behaviours with their evidence, the words that mark their prompts, and examples."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.markers import Markers, find_markers
from sae_lens_crosscoder.analysis.audit.finding import ControlAnswers, Evidence, Example, Finding, Label
from sae_lens_crosscoder.workflows.auditing.answers import AuditAnswers
from sae_lens_crosscoder.workflows.auditing.labels import LABELLED
from sae_lens_crosscoder.workflows.auditing.prompts import AuditPrompts

_N_EXAMPLES = 3


@dataclass(frozen=True)
class FindingWriter:
    """The prompts and answers that findings are made from."""

    prompts: AuditPrompts
    answers: AuditAnswers
    _markers: dict[Behaviour, Markers] = field(default_factory=dict[Behaviour, Markers])
    """Those of behaviours that were asked for before."""

    def finding(self, behaviour: Behaviour, evidence: Sequence[Evidence], labels: dict[int, Label]) -> Finding:
        """A behaviour with the evidence so far, and the labels of the first crosscoder's carriers."""
        prompts, answers = self.prompts, self.answers
        held_out = [i for i in behaviour.prompts if prompts.held_out[i]][:_N_EXAMPLES]
        carriers = evidence[0].carriers.latents if evidence else ()
        return Finding(
            behaviour=behaviour,
            markers=self.markers(behaviour),
            examples=tuple(Example(prompts.texts[i], answers.base[i], answers.chat[i]) for i in held_out),
            control=self.of_control(behaviour),
            evidence=tuple(evidence),
            labels=tuple(labels[latent] for latent in carriers[:LABELLED] if latent in labels),
        )

    def markers(self, behaviour: Behaviour) -> Markers:
        """Words that mark its prompts."""
        if behaviour not in self._markers:
            positive = torch.zeros(len(self.prompts), dtype=torch.bool)
            positive[list(behaviour.prompts)] = True
            self._markers[behaviour] = find_markers(self.prompts.texts, positive, self.prompts.held_out)
        return self._markers[behaviour]

    def of_control(self, behaviour: Behaviour) -> ControlAnswers | None:
        """Held-out prompts on which the control shows it; None without a control."""
        answers, held_out = self.answers, self.prompts.held_out.nonzero()[:, 0].tolist()
        if answers.control is None:
            return None
        texts = ([model[i] for i in held_out] for model in (answers.base, answers.control, answers.chat))
        return ControlAnswers.counted(behaviour, *texts)
