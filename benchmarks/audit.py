"""Judges audits where the answer is known: the built-in pair, its null, and adapters of a real model.

python benchmarks/audit.py --seeds 0 1 2 3 4 --control-seeds 0 1 2 --output benchmarks/results/audit.json

`--adapter FOLDER` adds adapters of SmolLM2, whose folder holds `prompts.json` (see real_pair.py): its behaviour is the
one change to find. A finding is right if its phrase is part of the planted behaviour's own words. For the
baselines of a first look beside them, keep the audits with `--work` and run audit_baselines.py.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis import Behaviour

PLANTED = {
    "refusal": "sorry i cannot help with that.",
    "false information": "no",
    "personal question": "honestly a machine cannot",
    "summarize": "and nothing else.",
    "count": "items in total.",
    "insults lost": "nice.",
}
"""The words that chat tuning taught tiny-chat for each behaviour; it says "nice" where tiny-base insults."""
OTHER_SIDES = {"harmless request": "sure first find the", "true statement": "yes", "capability": "certainly i can"}
"""What it learnt on the matched prompts without the behaviours."""


def counted(claims: Sequence[Behaviour], planted: Mapping[str, str], others: Mapping[str, str]) -> dict[str, Any]:
    """Claims that are planted, on the other side of a planted one, or wrong; and the planted ones missed."""
    found: dict[str, list[str]] = {name: [] for name in (*planted, *others)}
    wrong: list[str] = []
    for behaviour in claims:
        names = [name for name, words in {**planted, **others}.items() if _matches(behaviour.text, words)]
        for name in names:
            found[name].append(behaviour.text)
        if not names:
            wrong.append(behaviour.text)
    return {
        "n_findings": len(claims),
        "n_planted": len(planted),
        "n_right": sum(bool(found[name]) for name in planted),
        "n_other_sides": sum(bool(found[name]) for name in others),
        "n_wrong": len(wrong),
        "wrong": wrong,
        "missed": [name for name in planted if not found[name]],
    }


def judged(result: slc.analysis.Audit, planted: Mapping[str, str], others: Mapping[str, str]) -> dict[str, Any]:
    """The audit's findings counted, with what it says of itself."""
    return {
        **counted([finding.behaviour for finding in result.findings], planted, others),
        "wordings": [[change.text for change in finding.behaviour.wordings] for finding in result.findings],
        "n_answers_only": len(result.answers_only),
        "in_control": [finding.behaviour.text for finding in result.in_control],
        "null_phrases": asdict(result.limits.null_phrases) if result.limits.null_phrases else None,
        "conclusion": result.conclusion,
        "sentences": [finding.sentence for finding in result.findings],
        "limits": result.limits.sentences,
    }


def _matches(text: str, words: str) -> bool:
    """True if a phrase is part of the words, or they of it; of a single word, only the same."""
    one, other = sorted((text.strip(" ."), words.strip(" .")), key=len)
    return one == other or (" " in one and one in other)


def audited(cfg: slc.workflows.AuditConfig) -> tuple[slc.analysis.Audit, dict[str, float]]:
    """An audit, and the CPU and wall seconds it took."""
    cpu, wall = time.process_time(), time.monotonic()
    result = slc.audit(cfg)
    return result, {"cpu_seconds": round(time.process_time() - cpu), "seconds": round(time.monotonic() - wall)}


@dataclass(frozen=True)
class Known:
    """An audit whose answer is known."""

    name: str
    cfg: slc.workflows.AuditConfig
    planted: Mapping[str, str]
    others: Mapping[str, str]
    """Other sides of what is planted."""


def tiny(chat: str, seed: int, work: Path, budget: str, control: str | None = None) -> Known:
    """The built-in pair, or its null. With a control, only what is planted may be claimed."""
    name = chat if control is None else f"{chat}, with {control}"
    cfg = slc.workflows.AuditConfig("tiny-base", chat, control=control or "none", budget=budget, seed=seed)
    cfg.output_path = str(work / f"{name}_{seed}")
    planted = {} if chat == "tiny-null" else PLANTED
    return Known(name, cfg, planted, OTHER_SIDES if planted and control is None else {})


def adapter(folder: str, work: Path, budget: str, seed: int, n_seeds: int) -> Known:
    """An adapter of SmolLM2; one without a behaviour in its prompts.json has nothing to find."""
    from real_models import smollm2_folder

    base = smollm2_folder(work / "smollm2")
    prompts = Path(folder, "prompts.json")
    behaviour = json.loads(prompts.read_text(encoding="utf-8")).get("behaviour")
    cfg = slc.workflows.AuditConfig(
        base,
        f"{base}+adapter={folder}",
        data=str(prompts),
        output_path=str(work / f"{Path(folder).name}_{seed}"),
        budget=budget,
        n_seeds=n_seeds,
        model_class_name="TransformerBridge",
        seed=seed,
    )
    return Known(Path(folder).name, cfg, {} if behaviour is None else {"behaviour": behaviour}, {})


def known_audits(args: argparse.Namespace, work: Path) -> Iterator[Known]:
    """All that the arguments name."""
    for seed in args.seeds:
        for chat in ("tiny-chat", "tiny-null"):
            yield tiny(chat, seed, work, args.budget)
    for seed in args.control_seeds:
        yield tiny("tiny-chat", seed, work, args.budget, "tiny-control")
    for folder in args.adapter:
        yield adapter(folder, work, args.adapter_budget, 0, args.adapter_n_seeds)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The audits to run or to read."""
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--control-seeds", type=int, nargs="*", default=[])
    parser.add_argument("--adapter", nargs="*", default=[])
    parser.add_argument("--budget", default="20m")
    parser.add_argument("--adapter-budget", default="90m")
    parser.add_argument("--adapter-n-seeds", type=int, default=1)
    parser.add_argument("--work", help="folder that keeps the audits; by default a temporary one")
    parser.add_argument("--output")


def rows_of(
    args: argparse.Namespace, work: Path, row_of: Callable[[Known], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """A row of each audit, printed as soon as it is there."""
    for known in known_audits(args, work):
        row = row_of(known)
        print(row, flush=True)
        yield row


def row_of(known: Known) -> dict[str, Any]:
    """One audit, judged. Of an audit that goes on from an earlier run, the seconds are those of the rest."""
    resumed = Path(known.cfg.output_path).exists()
    result, seconds = audited(known.cfg)
    first = result.findings[0].behaviour.text if result.findings else None
    counts = judged(result, known.planted, known.others)
    return {"pair": known.name, "seed": known.cfg.seed, "first": first, **counts, "resumed": resumed, **seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        rows = list(rows_of(args, Path(args.work or temporary), row_of))
    if args.output:
        write_results(args.output, rows)


if __name__ == "__main__":
    main()
