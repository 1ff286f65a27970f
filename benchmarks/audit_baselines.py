"""Baselines of the first look, held to the rule of an audit: on its behaviours, prompts and activations.

Each baseline has directions of chat - base at the audit's hook instead of latents of a crosscoder: the mean difference,
principal components, an SAE trained on the difference. A behaviour is claimed if directions that set its prompts apart
write half of chat - base on them, tell the prompts from others better than for ten random choices of prompts, and have
the effect that an audit asks for when added to base, with noise and the rest without them as controls. Every baseline
keeps the test on the answers, without which it would not know a behaviour; `answers alone` is that test.

python benchmarks/audit.py --seeds 0 1 2 --control-seeds 0 1 2 --work audits
python benchmarks/audit_baselines.py --seeds 0 1 2 --control-seeds 0 1 2 --work audits --output \
    benchmarks/results/audit_baselines.json
"""

import argparse
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from audit import Known, add_arguments, audited, counted, rows_of
from results_file import write_results
from torch import Tensor

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.audit.carriers import MOST_CARRIERS, most_of, random_prompts, separation
from sae_lens_crosscoder.analysis.audit.effects import CausalEffect
from sae_lens_crosscoder.analysis.audit.finding import LEAST_SHARE
from sae_lens_crosscoder.analysis.baselines.directions import DifferenceDirections
from sae_lens_crosscoder.analysis.baselines.linear import difference_pca, mean_difference
from sae_lens_crosscoder.analysis.baselines.rows import DifferenceRows
from sae_lens_crosscoder.causal.ladder.edits import Edit, noise, of_same_energy
from sae_lens_crosscoder.causal.ladder.run import LadderRun
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.crosscoders.two_models import TwoModels
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.workflows.auditing.answers import ANSWERS_FOLDER, answer_all
from sae_lens_crosscoder.workflows.auditing.evidence import N_CAUSAL
from sae_lens_crosscoder.workflows.auditing.models import AuditModels
from sae_lens_crosscoder.workflows.auditing.prompts import audit_prompts
from sae_lens_crosscoder.workflows.auditing.rows import AuditRows, contrast_of, other_prompts
from sae_lens_crosscoder.workflows.difference_sae import train_difference_sae

N_COMPONENTS = 10


@dataclass(frozen=True)
class Case:
    """A behaviour of an audit: its prompts against others, as activations and as tokens."""

    behaviour: Behaviour
    rows: ContrastRows
    contrast: Contrast

    def parts(self, held_out: bool) -> tuple[Tensor, Tensor]:
        """chat - base at the decisions of prompts with the behaviour and of others."""
        width = self.rows.activations.shape[1] // 2
        positive, negative = ((rows[:, width:] - rows[:, :width]).double() for rows in self.rows.part(held_out))
        return positive, negative


@dataclass(frozen=True)
class Baselines:
    """A finished audit, read again from its folder."""

    cfg: slc.workflows.AuditConfig
    pair: HookedModelPair
    crosscoder: InferenceCrosscoder
    """The first one, which names the models and the hook."""
    cases: list[Case]
    directions: dict[str, DifferenceDirections | None]
    """None for the mean difference, which each case has for itself."""

    @classmethod
    def of(cls, cfg: slc.workflows.AuditConfig, result: slc.analysis.Audit) -> "Baselines":
        """Harvest the audit's rows again and compute the directions, the SAE with as many steps as a crosscoder."""
        hook_name = result.limits.hook_name
        assert hook_name is not None
        models = AuditModels.of(cfg, None)
        prompts = audit_prompts(cfg, models.pair).first(result.limits.n_prompts)
        answers = answer_all(cfg, models, prompts, Path(cfg.output_path, ANSWERS_FOLDER))
        rows = AuditRows.harvested(models.pair, prompts, answers.rows, hook_name, cfg.batch_size)
        width = rows.activations.shape[1] // 2
        difference = DifferenceRows(difference=rows.activations[:, width:] - rows.activations[:, :width])
        cases = []
        for finding in (*result.findings, *result.answers_only):
            others = other_prompts(finding.behaviour, answers.base, answers.chat, prompts)
            try:
                of_rows = rows.contrast(finding.behaviour, others)
            except ValueError:  # too few prompts in a part
                continue
            tokens = contrast_of(finding.behaviour, others, prompts, N_CAUSAL)
            cases.append(Case(finding.behaviour, of_rows, tokens))
        directions = {
            "mean difference": None,
            "principal components": difference_pca(difference, N_COMPONENTS),
            "SAE on the difference": train_difference_sae(difference, d_sae=512, k=16, n_steps=500, seed=cfg.seed),
        }
        return cls(cfg, models.pair, slc.load(Path(cfg.output_path, f"crosscoder_{cfg.seed}")), cases, directions)

    def claimed(self) -> dict[str, list[Behaviour]]:
        """Behaviours that each baseline claims, of those whose answers pass the audit's test."""
        new = [case for case in self.cases if case.behaviour.is_new]
        found = {name: [case.behaviour for case in new if self._claims(name, case)] for name in self.directions}
        return {"answers alone": [case.behaviour for case in new], **found}

    def _claims(self, name: str, case: Case) -> bool:
        directions = self.directions[name] or _mean_difference(case)
        carriers = _carriers(directions, case)
        area = _separation(directions, case, carriers)
        by_chance = max(
            _separation(directions, drawn, _carriers(directions, drawn))
            for drawn in (replace(case, rows=rows) for rows in random_prompts(case.rows, 0))
        )
        shared = _writers(directions, case)
        shared = shared[~torch.isin(shared, carriers)]
        share = float(_shares_of_mean(directions, case.parts(held_out=True)[0])[torch.cat([carriers, shared])].sum())
        if share < LEAST_SHARE or area <= by_chance:
            return False
        return self._effect(directions, case, carriers, shared).is_causal

    def _effect(self, directions: DifferenceDirections, case: Case, carriers: Tensor, shared: Tensor) -> CausalEffect:
        """Base with what the directions write added, without the carriers, and with noise of the same energy."""
        two = TwoModels.of(self.crosscoder, None, "a baseline")
        texts = case.behaviour.is_in
        run = LadderRun(two, self.pair, case.contrast, texts, self.cfg.max_new_tokens, self.cfg.batch_size)

        def written_by(ids: Tensor) -> Edit:
            def edit(stacked: Tensor, places: Tensor) -> Tensor:
                base, chat = two.split(stacked)
                acts = directions.activations((chat - base).float())[:, ids]
                return (directions.bias + acts @ directions.directions[ids]).to(stacked)

            return edit

        named = written_by(torch.cat([carriers, shared]))
        edits = {"base": None, "biases": written_by(shared), "named": named}
        edits |= {f"noise {draw}": of_same_energy(named, noise(two, draw)) for draw in range(2)}
        rows = {name: run.effects(edit, False) for name, edit in edits.items()}
        rows["mean difference"] = rows["named"]  # a column that the rule does not read
        rows["chat"] = {**run.effects(None, False, writer=two.names[1]), "kl_nats": 0.0}
        table = pd.DataFrame.from_dict(rows, orient="index")
        table["brought_back"] = 1 - table["kl_nats"] / table["kl_nats"]["base"]
        return CausalEffect.of_ladder(table, int((case.contrast.held_out & case.contrast.positive).sum()))


def _mean_difference(case: Case) -> DifferenceDirections:
    """The mean of chat - base on the case's prompts, beyond that on the others, which is the bias."""
    positive, negative = case.parts(held_out=False)
    labels = torch.tensor([0] * len(positive) + [1] * len(negative))
    rows = DifferenceRows(difference=torch.cat([positive, negative]).float(), labels=labels, names=("with", "others"))
    return mean_difference(rows, against="others")


def _carriers(directions: DifferenceDirections, case: Case) -> Tensor:
    return most_of(directions.contrast_shares(*(part.float() for part in case.parts(held_out=False))), MOST_CARRIERS)


def _shares_of_mean(directions: DifferenceDirections, positive: Tensor) -> Tensor:
    """Share of each direction in the mean of chat - base on some prompts, beyond the bias."""
    target = positive.mean(dim=0) - directions.bias.double()
    acts = directions.activations(positive.float()).double().mean(dim=0)
    return acts * (directions.directions.double() @ target) / target.square().sum()


def _writers(directions: DifferenceDirections, case: Case) -> Tensor:
    return most_of(_shares_of_mean(directions, case.parts(held_out=False)[0]), MOST_CARRIERS)


def _separation(directions: DifferenceDirections, case: Case, carriers: Tensor) -> float:
    """AUROC on held-out prompts of what the carriers write along the contrast that they were chosen on."""
    positive, negative = (part.mean(dim=0) for part in case.parts(held_out=False))
    along = directions.directions.double()[carriers] @ (positive - negative)
    scores = [directions.activations(part.float()).double()[:, carriers] @ along for part in case.parts(held_out=True)]
    return separation(*scores)


def row_of(known: Known) -> dict[str, Any]:
    """What the audit claims, and each baseline beside it; without a hook, nobody has anything to trace."""
    result, _ = audited(known.cfg)
    where = (known.planted, known.others)
    row = {"pair": known.name, "seed": known.cfg.seed}
    row["claims"] = {"audit": counted([finding.behaviour for finding in result.findings], *where)}
    if result.limits.hook_name is not None:
        claimed = Baselines.of(known.cfg, result).claimed()
        row["claims"] |= {name: counted(behaviours, *where) for name, behaviours in claimed.items()}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    if args.work is None:
        parser.error("pass --work with the folder of the audits")
    torch.set_num_threads(1)
    rows = list(rows_of(args, Path(args.work), row_of))
    if args.output:
        write_results(args.output, rows)


if __name__ == "__main__":
    main()
