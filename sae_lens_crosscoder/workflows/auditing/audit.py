"""audit: asks what a fine-tune changed, and answers with findings, their evidence, and the limits of the search."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.eval_data import EvalData
from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.phrases import find_phrases
from sae_lens_crosscoder.analysis.audit.finding import Evidence, Finding, Label
from sae_lens_crosscoder.analysis.audit.limits import least_frequency
from sae_lens_crosscoder.analysis.audit.not_found import not_found
from sae_lens_crosscoder.analysis.audit.result import MOST_FINDINGS, Audit, Limits
from sae_lens_crosscoder.analysis.changed.significance import Q_LIMIT
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.causal.localisation.first_look import FirstLook
from sae_lens_crosscoder.causal.localisation.recommendation import first_hook_with
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.interpretation.clients import Client
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.report.explorer.page import write_explorer
from sae_lens_crosscoder.report.pages.audit import write_audit
from sae_lens_crosscoder.storage.versions import package_versions
from sae_lens_crosscoder.workflows.auditing.answers import ANSWERS_FOLDER, answer_all
from sae_lens_crosscoder.workflows.auditing.config import LEAST_PROMPTS, AuditConfig, with_own_control
from sae_lens_crosscoder.workflows.auditing.crosscoders import AuditCrosscoders
from sae_lens_crosscoder.workflows.auditing.evidence import EvidenceReader
from sae_lens_crosscoder.workflows.auditing.explorer import EXPLORER_FILENAME, MOST_ROWS, N_PASSES, explore_answers
from sae_lens_crosscoder.workflows.auditing.findings import FindingWriter
from sae_lens_crosscoder.workflows.auditing.labels import LABELLED, label_latents
from sae_lens_crosscoder.workflows.auditing.models import AuditModels
from sae_lens_crosscoder.workflows.auditing.progress import Progress
from sae_lens_crosscoder.workflows.auditing.prompts import AuditPrompts, audit_prompts
from sae_lens_crosscoder.workflows.auditing.rows import AuditRows
from sae_lens_crosscoder.workflows.first_look import first_look

PAGE_FILENAME = "audit.html"
_SHARE_FOR_ANSWERS = 0.25
_ENOUGH_OF_SHARE = 0.9
_N_TIMED, _N_LOOK = 16, 96


@validate_arguments
def audit(cfg: AuditConfig, pair: HookedModelPair | None = None, client: Client | None = None) -> Audit:
    """Find what a fine-tune changed in a model's behaviour, and trace it to latents.

    Both models answer the prompts. Phrases that one model's sampled answers have and the other's lack are found on one
    half of the prompts and tested on the other. Where the answers differ, a crosscoder is trained at the hook of a
    first look; its latents that write the change are added to the base model, beside random latents and noise of the
    same energy. A finding needs all three: the test (q at most 0.05), carriers that write half of the change, and their
    effect. Writes `audit.json`, `audit.html` and, if there are findings, `explorer.html` of the first crosscoder; a
    repeated call in the same folder continues.

    Args:
        pair: the models, if they are loaded already; their names in `cfg` are then only names. With a control: base,
            control and chat.
        client: explains the latents of each finding; its labels stand beside the evidence, marked as its own.

    Raises:
        ValueError: before long work, for too few prompts or a budget that is too short, another number of models, or a
            folder with another audit.
    """
    cfg = with_own_control(cfg, models_are_given=pair is not None)
    progress = Progress(cfg, tqdm.write)
    run = _AuditRun(cfg, AuditModels.of(cfg, pair), progress)
    run.read_answers()
    try:
        run.trace()
        run.written()  # what follows only adds to it
        run.describe(client)
    except KeyboardInterrupt:
        run.is_interrupted = True
        progress.say("Interrupted: the page shows what was done; the same command continues.")
    return run.written()


class _AuditRun:
    """The stages of one audit, and what each has found."""

    def __init__(self, cfg: AuditConfig, models: AuditModels, progress: Progress) -> None:
        self.cfg, self.models, self.pair, self.progress = cfg, models, models.pair, progress
        self.is_interrupted = False
        self.hook_name: str | None = None
        self.look: FirstLook | None = None
        self.crosscoders: AuditCrosscoders | None = None
        self.fve: tuple[float, ...] = ()
        self.reader: EvidenceReader | None = None
        self.behaviours: list[Behaviour] = []
        self.evidence: dict[Behaviour, list[Evidence]] = {}
        self.least_sizes: dict[float, float] | None = None
        self.labels: dict[int, Label] = {}

    def read_answers(self) -> None:
        """Let both models answer the prompts, and find the phrases in which they differ."""
        with self.progress.stage("prompts"):
            self.prompts = self._within_budget(audit_prompts(self.cfg, self.pair))
        with self.progress.stage("answers"):
            self.answers = answer_all(self.cfg, self.models, self.prompts, self.progress.folder / ANSWERS_FOLDER)
        with self.progress.stage("phrases"):
            self.changes = find_phrases(self.answers.base, self.answers.chat, self.prompts.held_out)
            self.null_phrases = self.answers.null_phrases(self.prompts)
            self.findings = FindingWriter(self.prompts, self.answers)
            self.behaviours = [Behaviour((change,)) for change in self.changes if change.q_value <= Q_LIMIT]

    def trace(self) -> None:
        """Take a first look, and trace what changed to the latents of crosscoders."""
        with self.progress.stage("first look"):
            self.hook_name = self.cfg.hook_name or self._looked()
        if self.hook_name is None:
            return
        with self.progress.stage("activations"):
            answers, batch_size = self.answers.rows, self.cfg.batch_size
            rows = AuditRows.harvested(self.pair, self.prompts, answers, self.hook_name, batch_size)
        self.crosscoders = AuditCrosscoders(self.cfg, rows, self.hook_name)
        texts = (self.answers.base, self.answers.chat)
        self.reader = EvidenceReader(self.cfg, self.pair, self.prompts, *texts, rows, self.progress)
        traced = [finding.behaviour for finding in self._found() if not finding.is_in_control]
        last = self.cfg.seed + self.cfg.n_seeds
        for seed in range(self.cfg.seed, last + 1 if traced else self.cfg.seed):
            if seed == last and not (traced := [behaviour for behaviour in traced if self._is_tie(behaviour)]):
                break
            if seed > self.cfg.seed and self.progress.left < self.progress.seconds[f"crosscoder {self.cfg.seed}"]:
                self.progress.say("No time is left for another crosscoder.")
                break
            with self.progress.stage(f"crosscoder {seed}"):
                if seed == self.cfg.seed:
                    traced = self._joined(self.crosscoders.first, self.reader, traced)
                self._trace_with(self.crosscoders.of_seed(seed), self.reader, seed, traced)
        with self.progress.stage("detection limits"):
            self.least_sizes = self.crosscoders.least_sizes()

    def describe(self, client: Client | None) -> None:
        """Show the first crosscoder's latents in an explorer, and let a client explain the carriers."""
        findings = self.result().findings
        if not findings or self.crosscoders is None or self.reader is None:
            return
        crosscoder, path = self.crosscoders.first, self.progress.folder / EXPLORER_FILENAME
        rows, batch_size = self.answers.rows, self.cfg.batch_size
        share_read = N_PASSES * min(1, MOST_ROWS / len(rows))
        if not path.exists() and self.progress.left < share_read * self.progress.seconds["activations"]:
            self.progress.say("No time is left for the explorer.")
        elif not path.exists():
            with self.progress.stage("explorer"):
                contrasts = [self.reader.contrast(finding.behaviour) for finding in findings]
                shown = explore_answers({"audit": crosscoder}, self.pair, rows, contrasts, batch_size=batch_size)
                write_explorer(shown, path)
        if client is not None:
            latents = sorted({latent for finding in findings for latent in finding.latents[:LABELLED]})
            with self.progress.stage("labels"):
                folder = self.crosscoders.first_folder
                self.labels = label_latents(crosscoder, self.pair, rows, latents, client, folder, batch_size)

    def written(self) -> Audit:
        """The audit as far as it went, after writing its file and its page."""
        result, cfg = self.result(), self.cfg
        result.save(cfg.output_path)
        write_audit(result, Path(cfg.output_path, PAGE_FILENAME), f"What changed from {cfg.base} to {cfg.chat}")
        return result

    def result(self) -> Audit:
        """The audit as far as it went."""
        found = self._found()
        # Rare changes by name, where they are equally frequent.
        found.sort(key=lambda finding: (-finding.behaviour.n_with, finding.behaviour.text))
        in_control = [finding for finding in found if finding.is_in_control]
        claimed = [finding for finding in found if finding.is_claimed][:MOST_FINDINGS]
        return Audit(
            findings=tuple(claimed),
            answers_only=tuple(finding for finding in found if finding not in claimed and finding not in in_control),
            in_control=tuple(in_control),
            not_found=tuple(not_found(self.changes, is_traced=self.hook_name is not None or self.is_interrupted)),
            limits=self._limits(),
            manifest=self._manifest(),
            explorer=EXPLORER_FILENAME if (self.progress.folder / EXPLORER_FILENAME).exists() else None,
        )

    def _within_budget(self, prompts: AuditPrompts) -> AuditPrompts:
        """As many prompts as are answered in a quarter of the budget, or as before, if resumed."""
        if self.progress.n_prompts is None:
            start = time.monotonic()
            answer_all(self.cfg, self.models, prompts.first(_N_TIMED), None)
            seconds = (time.monotonic() - start) / _N_TIMED
            n = min(len(prompts), int(_SHARE_FOR_ANSWERS * self.progress.left / seconds))
            if n < LEAST_PROMPTS:
                needed = LEAST_PROMPTS * seconds / _SHARE_FOR_ANSWERS / 60
                raise ValueError(
                    f"budget={self.cfg.budget!r} is too short: the models take {seconds:.1f} s for a prompt, and at "
                    f"least {LEAST_PROMPTS} prompts are needed. Pass at least {needed:.0f}m."
                )
            self.progress.keep(n)
            self.progress.say(
                f"Plan for {self.cfg.budget}: {n:,} prompts, answered in about {n * seconds:.0f} s; a first look, and "
                f"the activations of about {n * 2 * self.cfg.max_new_tokens:,} tokens; up to {self.cfg.n_seeds} "
                "crosscoders with causal checks, one more where half of them disagree, and one for the detection "
                "limits, as far as time allows."
            )
        assert self.progress.n_prompts is not None
        return prompts.first(self.progress.n_prompts)

    def _looked(self) -> str | None:
        """The first hook at which chat's activation brings back 0.9 of what it does at best; None if there is none.

        Later, where the answer is already written, latents of several behaviours are one.
        """
        folder = self.progress.folder / "first_look"
        if folder.exists():
            self.look = FirstLook.load(folder)
        else:
            tokens, mask = self.prompts.first(_N_LOOK).tokens
            data = EvalData(pair=self.pair, tokens=tokens, token_mask=mask, batch_size=self.cfg.batch_size)
            self.look = first_look(self.pair, data, seed=self.cfg.seed)
            self.look.save(folder)
        if self.look.recommendation.hook_name is None:
            self.progress.say(self.look.recommendation.reason)
            return None
        hooks = self.look.hooks
        shares = torch.tensor(hooks["share_last"].to_numpy(dtype=float))
        return str(hooks.index[int(first_hook_with(shares[None], _ENOUGH_OF_SHARE))])

    def _joined(
        self, crosscoder: InferenceCrosscoder, reader: EvidenceReader, traced: Sequence[Behaviour]
    ) -> list[Behaviour]:
        """Behaviours to trace, after joining changes that are wordings of one."""
        joined = reader.joined(crosscoder, [change for behaviour in traced for change in behaviour.wordings])
        self.behaviours = [*joined, *(behaviour for behaviour in self.behaviours if behaviour not in traced)]
        return joined

    def _trace_with(
        self, crosscoder: InferenceCrosscoder, reader: EvidenceReader, seed: int, behaviours: Sequence[Behaviour]
    ) -> None:
        self.fve = self.fve or reader.rows.fve(crosscoder)
        for behaviour, evidence in zip(behaviours, reader.read(crosscoder, seed, behaviours), strict=True):
            if evidence is not None:
                self.evidence.setdefault(behaviour, []).append(evidence)

    def _is_tie(self, behaviour: Behaviour) -> bool:
        """True if half of the crosscoders trace a behaviour: one more decides."""
        evidence = self.evidence.get(behaviour, [])
        return len(evidence) > 0 and 2 * sum(each.is_traced for each in evidence) == len(evidence)

    def _found(self) -> list[Finding]:
        """Significant changes, with the evidence so far."""
        return [self.findings.finding(each, self.evidence.get(each, []), self.labels) for each in self.behaviours]

    def _limits(self) -> Limits:
        n, held_out = len(self.prompts), int(self.prompts.held_out.sum())
        return Limits(
            n_prompts=n,
            n_held_out=held_out,
            least_frequency=least_frequency(n - held_out, held_out, len(self.changes)),
            null_phrases=self.null_phrases,
            hook_name=self.hook_name,
            n_rows=0 if self.crosscoders is None else len(self.crosscoders.rows.activations),
            fve=self.fve,
            least_sizes=self.least_sizes,
        )

    def _manifest(self) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "models": [self.cfg.base, self.cfg.chat],
            "control": self.cfg.control,
            "interrupted": self.is_interrupted,
            "seconds": self.progress.facts(),
            "settings": {name: getattr(self.cfg, name) for name in ("data", "texts", "budget", "seed", "n_seeds")},
            "versions": package_versions(),
        }
        if self.look is not None:
            facts["share brought back by hook"] = self.look.hooks["share_last"].round(3).to_dict()
        return facts
