"""Evidence of one crosscoder for each behaviour: its carriers, and what they do when added to the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows, contrast_rows
from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange
from sae_lens_crosscoder.analysis.audit.carriers import Carriers, find_carriers
from sae_lens_crosscoder.analysis.audit.effects import CausalEffect
from sae_lens_crosscoder.analysis.audit.finding import Evidence
from sae_lens_crosscoder.analysis.audit.wordings import ComparedChange, join_wordings
from sae_lens_crosscoder.causal.ladder.ladder import Ladder, causal_ladder
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.checksums import digest
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig
from sae_lens_crosscoder.workflows.auditing.progress import Progress
from sae_lens_crosscoder.workflows.auditing.prompts import AuditPrompts
from sae_lens_crosscoder.workflows.auditing.rows import AuditRows, contrast_of, contrast_with_earlier, other_prompts

N_CAUSAL = 16
"""Prompts of each group on which effects are measured, and as many to choose controls on."""
_CONDITIONS = ("named", "random latents", "noise", "mean difference")
"""Beside what is left without the carriers."""
_LEAST_PER_PART, _SPARE_TOKENS, _MOST_EARLIER = 2, 2, 64


@dataclass(frozen=True)
class EvidenceReader:
    """The pair, its prompts and answers, and the rows of both."""

    cfg: AuditConfig
    pair: HookedModelPair
    prompts: AuditPrompts
    base_answers: list[str]
    chat_answers: list[str]
    rows: AuditRows
    progress: Progress

    def joined(self, crosscoder: InferenceCrosscoder, changes: Sequence[PhraseChange]) -> list[Behaviour]:
        """Behaviours that the changes are wordings of, the most frequent first."""
        ordered = sorted(changes, key=lambda change: (-change.n_with, change.text))
        answers = list(zip(self.base_answers, self.chat_answers, strict=True))
        compared = [
            ComparedChange(
                change=change,
                without=torch.tensor([not (change.is_in(base) or change.is_in(chat)) for base, chat in answers]),
                contrast=self._rows_of(Behaviour((change,))),
            )
            for change in ordered
        ]
        rows = self.rows
        return join_wordings(crosscoder, compared, rows.activations[rows.decision_rows], rows.held_out)

    def read(
        self, crosscoder: InferenceCrosscoder, seed: int, behaviours: Sequence[Behaviour]
    ) -> list[Evidence | None]:
        """Evidence for each behaviour; None for one with too few prompts to choose latents on."""
        evidence: list[Evidence | None] = []
        for behaviour in behaviours:
            contrast = self._rows_of(behaviour)
            if contrast is None:
                evidence.append(None)
                continue
            carriers = find_carriers(crosscoder, contrast, self.cfg.seed)
            effect = None
            if carriers.latents:
                name = digest([[change.writer, *change.phrase] for change in behaviour.wordings])[:16]
                folder = self.progress.folder / f"effects_{seed}" / name
                effect = self._effect(crosscoder, behaviour, carriers, folder)
            everywhere = self._is_everywhere(behaviour)
            evidence.append(Evidence(seed=seed, carriers=carriers, effect=effect, is_everywhere=everywhere))
        return evidence

    def contrast(self, behaviour: Behaviour) -> Contrast:
        """Its prompts against others for the causal check, and for an explorer."""
        if self._is_everywhere(behaviour):
            return contrast_with_earlier(behaviour, self.prompts, N_CAUSAL)
        return contrast_of(behaviour, self._others(behaviour), self.prompts, N_CAUSAL)

    def _rows_of(self, behaviour: Behaviour) -> ContrastRows | None:
        """Its prompts against others at their decisions; None for too few of either."""
        if self._is_everywhere(behaviour):
            contrast = contrast_with_earlier(behaviour, self.prompts, _MOST_EARLIER)
            return contrast_rows(self.pair, contrast, self.rows.hook_name, self.cfg.batch_size)
        others = self._others(behaviour)
        is_enough = self._is_enough(behaviour.prompts) and self._is_enough(others)
        return self.rows.contrast(behaviour, others) if is_enough else None

    def _others(self, behaviour: Behaviour) -> list[int]:
        return other_prompts(behaviour, self.base_answers, self.chat_answers, self.prompts)

    def _is_everywhere(self, behaviour: Behaviour) -> bool:
        """True if fewer than a fifth of the prompts are without it: then these are no group of their own."""
        return self._is_enough(behaviour.prompts) and len(self._others(behaviour)) < len(behaviour.prompts) / 4

    def _n_tokens(self, behaviour: Behaviour) -> int:
        """Tokens that an answer needs to show the phrase, where it stands in the writer's own answers."""
        texts = self.base_answers if behaviour.writer == "base" else self.chat_answers
        beginnings = [behaviour.beginning(texts[i]) or "" for i in behaviour.prompts]
        lengths = [len(self.pair.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in beginnings]
        return min(self.cfg.max_new_tokens, max(lengths) + _SPARE_TOKENS)

    def _is_enough(self, prompts: Sequence[int]) -> bool:
        n_held_out = int(self.prompts.held_out[torch.tensor(prompts, dtype=torch.long)].sum())
        return min(n_held_out, len(prompts) - n_held_out) >= _LEAST_PER_PART

    def _effect(
        self,
        crosscoder: InferenceCrosscoder,
        behaviour: Behaviour,
        carriers: Carriers,
        folder: Path,
    ) -> CausalEffect | None:
        """The effect of an earlier run in the folder, or measured if the budget allows."""
        contrast = self.contrast(behaviour)
        n_prompts = int((contrast.held_out & contrast.positive).sum())
        if folder.exists():
            return CausalEffect.of_ladder(Ladder.load(folder).table, n_prompts)
        if self.progress.left <= self.progress.slowest_effect:
            return None
        with self.progress.effect():
            ladder = causal_ladder(
                crosscoder,
                self.pair,
                contrast,
                [*carriers.shared, *carriers.latents],
                behaviour.is_in,
                rungs=(len(carriers.shared),) if carriers.shared else (),
                only=[*_CONDITIONS, "first" if carriers.shared else "biases"],
                max_new_tokens=self._n_tokens(behaviour),
                seed=self.cfg.seed,
                batch_size=self.cfg.batch_size,
            )
        ladder.save(folder)
        return CausalEffect.of_ladder(ladder.table, n_prompts)
