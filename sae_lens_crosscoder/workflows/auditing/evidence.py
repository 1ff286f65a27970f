"""Evidence of one crosscoder for each change: its carriers, and what they do when added to the base model."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange
from sae_lens_crosscoder.analysis.audit.carriers import Carriers, find_carriers
from sae_lens_crosscoder.analysis.audit.effects import CausalEffect
from sae_lens_crosscoder.analysis.audit.finding import Evidence
from sae_lens_crosscoder.causal.ladder.ladder import Ladder, causal_ladder
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig
from sae_lens_crosscoder.workflows.auditing.progress import Progress
from sae_lens_crosscoder.workflows.auditing.prompts import AuditPrompts
from sae_lens_crosscoder.workflows.auditing.rows import AuditRows, contrast_of, other_prompts

N_CAUSAL = 16
"""Prompts of each group on which effects are measured, and as many to choose controls on."""
_CONDITIONS = ("named", "random latents", "noise", "mean difference")
"""Beside what is left without the carriers."""
_LEAST_PER_PART, _SPARE_TOKENS = 2, 2


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

    def read(
        self, crosscoder: InferenceCrosscoder, seed: int, changes: Sequence[PhraseChange]
    ) -> list[Evidence | None]:
        """Evidence for each change; None for one with too few prompts to choose latents on."""
        evidence: list[Evidence | None] = []
        for number, change in enumerate(changes):
            others = other_prompts(change, self.base_answers, self.chat_answers, self.prompts)
            if not self._is_enough(change.prompts) or not self._is_enough(others):
                evidence.append(None)
                continue
            carriers = find_carriers(crosscoder, self.rows.contrast(change, others), self.cfg.seed)
            effect = None
            if carriers.latents:
                contrast = contrast_of(change, others, self.prompts, N_CAUSAL)
                folder = self.progress.folder / f"effects_{seed}" / str(number)
                effect = self._effect(crosscoder, change, contrast, carriers, folder)
            evidence.append(Evidence(seed=seed, carriers=carriers, effect=effect))
        return evidence

    def _n_tokens(self, change: PhraseChange) -> int:
        """Tokens that an answer needs to show the phrase, where it stands in the writer's own answers."""
        texts = self.base_answers if change.writer == "base" else self.chat_answers
        beginnings = [change.beginning(texts[i]) or "" for i in change.prompts]
        lengths = [len(self.pair.tokenizer(text, add_special_tokens=False)["input_ids"]) for text in beginnings]
        return min(self.cfg.max_new_tokens, max(lengths) + _SPARE_TOKENS)

    def _is_enough(self, prompts: Sequence[int]) -> bool:
        n_held_out = int(self.prompts.held_out[torch.tensor(prompts, dtype=torch.long)].sum())
        return min(n_held_out, len(prompts) - n_held_out) >= _LEAST_PER_PART

    def _effect(
        self,
        crosscoder: InferenceCrosscoder,
        change: PhraseChange,
        contrast: Contrast,
        carriers: Carriers,
        folder: Path,
    ) -> CausalEffect | None:
        """The effect of an earlier run in the folder, or measured if the budget allows."""
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
                change.is_in,
                rungs=(len(carriers.shared),) if carriers.shared else (),
                only=[*_CONDITIONS, "first" if carriers.shared else "biases"],
                max_new_tokens=self._n_tokens(change),
                seed=self.cfg.seed,
                batch_size=self.cfg.batch_size,
            )
        ladder.save(folder)
        return CausalEffect.of_ladder(ladder.table, n_prompts)
