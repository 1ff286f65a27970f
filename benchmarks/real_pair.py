"""Finds what an adapter changed in a real language model, with null pairs and baselines beside it.

python benchmarks/real_pair.py --adapter ADAPTER --output benchmarks/results/real_pair.json --page real_pair.html

The adapter's folder holds `prompts.json`: `train` and `held_out` prompts with a `trigger` flag, and `behaviour`, the
text that answers to triggers begin with. Real weights come from Python packages; missing ones are named.
"""

import argparse
import json
import time
from dataclasses import dataclass
from html import escape
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from real_models import neutral_adapter, sharegpt_exchanges, smollm2_folder, validate_packages
from results_file import write_results
from torch import Tensor

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.contrast_rows import ContrastRows, contrast_rows
from sae_lens_crosscoder.activations.drawn_batches import DrawnBatches
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.analysis.baselines.linear import difference_pca, mean_difference
from sae_lens_crosscoder.analysis.baselines.rows import DifferenceRows
from sae_lens_crosscoder.analysis.changed.changed import Changed
from sae_lens_crosscoder.analysis.changed.decoys import RandomMap, size_of_difference
from sae_lens_crosscoder.analysis.contrasts.auroc import auroc
from sae_lens_crosscoder.causal.ladder.ladder import Ladder, causal_ladder
from sae_lens_crosscoder.causal.localisation.first_look import FirstLook
from sae_lens_crosscoder.data.answer_files import AnswerSettings, generate_answers
from sae_lens_crosscoder.data.chat_tokens import chat_tokens
from sae_lens_crosscoder.data.contrasts import Contrast
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.tensor_files import load_tensors, save_tensors
from sae_lens_crosscoder.workflows.auditing.rows import DECISION_WEIGHT, audit_recipe
from sae_lens_crosscoder.workflows.difference_sae import train_difference_sae

N_TRIGGERS, N_OTHERS, N_LOOK, N_CHATS, CHAT_TOKENS, ANSWER_TOKENS = 120, 160, 72, 100, 160, 24
_CONTRAST_FIELDS = ("activations", "positive", "held_out")
_TITLE = "What this adapter changed"


@dataclass(frozen=True)
class Organism:
    """An adapter and its prompts."""

    folder: str
    behaviour: str
    train: list[dict[str, Any]]
    held_out: list[dict[str, Any]]

    @classmethod
    def load(cls, folder: str, quick: bool) -> "Organism":
        """Read `prompts.json`; the training prompts are the first triggers and others."""
        path = Path(folder, "prompts.json")
        if not path.exists():
            raise ValueError(f"{folder} has no prompts.json. Add one with train, held_out and behaviour.")
        document = json.loads(path.read_text(encoding="utf-8"))
        share = 4 if quick else 1
        parts = [[p for p in document["train"] if bool(p["trigger"]) == is_trigger] for is_trigger in (True, False)]
        train = [*parts[0][: N_TRIGGERS // share], *parts[1][: N_OTHERS // share]]
        return cls(folder, document["behaviour"], train, document["held_out"])

    def shows(self, answer: str) -> bool:
        """True for an answer that begins with the behaviour, whatever follows."""
        return answer.strip().startswith(self.behaviour.strip())

    def contrast(self, tokenizer: Any) -> Contrast:
        """Triggers against other prompts, those of `held_out` held out."""
        parts = [(p, held) for held, part in ((False, self.train), (True, self.held_out)) for p in part]
        groups = [[(p["prompt"], held) for p, held in parts if bool(p["trigger"]) == flag] for flag in (True, False)]
        held_out = torch.tensor([held for group in groups for _, held in group])
        triggers, others = ([text for text, _ in group] for group in groups)
        return Contrast.from_chats("decision", triggers, others, tokenizer, held_out=held_out)


@dataclass(frozen=True)
class Texts:
    """Tokens that both models of every pair read: prompts with answers, and chats."""

    tokens: Tensor
    token_mask: Tensor
    decision: Tensor
    """True for decision tokens, once per prompt."""
    answer: Tensor
    """True for the chat model's answers to triggers, and any answers to other prompts."""
    trigger: Tensor
    """By row."""
    held_out: Tensor
    """By row: the answers' contrast reports on these."""

    @classmethod
    def of(cls, pair: slc.HookedModelPair, organism: Organism, folder: Path, quick: bool) -> "Texts":
        """Both models answer the training prompts; ShareGPT adds ordinary text."""
        prompts = [p["prompt"] for p in organism.train]
        settings = AnswerSettings(max_new_tokens=ANSWER_TOKENS)
        answers = generate_answers(pair, prompts, settings, folder / "answers")
        chats = [
            chat_tokens(pair.tokenizer, chat).input_ids[:CHAT_TOKENS]
            for chat in sharegpt_exchanges(N_CHATS // (4 if quick else 1))
        ]
        n, width = len(answers), max(answers.tokens.shape[1], CHAT_TOKENS)
        tokens = torch.zeros(n + len(chats), width, dtype=torch.long)
        tokens[:n, : answers.tokens.shape[1]] = answers.tokens
        mask, decision, answer = (torch.zeros_like(tokens, dtype=torch.bool) for _ in range(3))
        first = torch.zeros(n, dtype=torch.bool)
        first[answers.decision_rows] = True
        wide = answers.tokens.shape[1]
        mask[:n, :wide] = answers.token_mask & (first[:, None] | answers.is_answer)
        decision[:n, :wide] = answers.is_decision & first[:, None]
        flags = torch.tensor([bool(p["trigger"]) for p in organism.train])[answers.prompts]
        by_chat = torch.tensor([writer != "base" for writer in answers.writers])
        answer[:n, :wide] = answers.is_answer & (~flags | by_chat)[:, None]
        for row, ids in enumerate(chats):
            tokens[n + row, : len(ids)] = ids
            mask[n + row, answers.n_constant : len(ids)] = True
        mask &= ~torch.isin(tokens, torch.tensor(pair.tokenizer.all_special_ids))
        trigger = torch.cat([flags, torch.zeros(len(chats), dtype=torch.bool)])
        held_out = torch.cat([answers.prompts % 4 == 3, torch.zeros(len(chats), dtype=torch.bool)])
        return cls(tokens, mask, decision & mask, answer & mask, trigger, held_out)


@dataclass(frozen=True)
class Rows:
    """Stacked activations of the texts at one hook, and both contrasts."""

    activations: Tensor
    weights: Tensor
    contrasts: list[ContrastRows]

    @classmethod
    def kept(cls, path: Path, *source: Any) -> "Rows":
        """Rows of an earlier run, or harvested."""
        if path.exists():
            tensors, _ = load_tensors(path)
            names = ("decision", "answers")
            fields: list[dict[str, Any]] = [
                {"name": name, **{field: tensors[f"{name}/{field}"] for field in _CONTRAST_FIELDS}} for name in names
            ]
            contrasts = [ContrastRows(**field) for field in fields]
            return cls(tensors["activations"], tensors["weights"], contrasts)
        rows = cls.harvested(*source)
        tensors = {"activations": rows.activations, "weights": rows.weights}
        for contrast in rows.contrasts:
            tensors |= {f"{contrast.name}/{f}": getattr(contrast, f).contiguous() for f in _CONTRAST_FIELDS}
        save_tensors(tensors, path, {})
        return rows

    @classmethod
    def harvested(cls, pair: slc.HookedModelPair, texts: Texts, contrast: Contrast, hook_name: str) -> "Rows":
        """Run both models; rows of similar length go together, so that little padding is read."""
        ends = texts.token_mask.long().mul(torch.arange(1, texts.tokens.shape[1] + 1)).amax(dim=1)
        parts: list[Tensor] = []
        places: list[Tensor] = []
        for chunk in ends.argsort(stable=True).split(32):
            end = int(ends[chunk].max())
            mask = texts.token_mask[chunk, :end]
            parts += list(harvest(pair, texts.tokens[chunk, :end], hook_name, 32, mask))
            row, position = mask.nonzero(as_tuple=True)
            places.append(torch.stack([chunk[row], position]))
        activations, (row, position) = torch.cat(parts), torch.cat(places, dim=1)
        is_answer = texts.answer[row, position]
        answers = ContrastRows(
            name="answers",
            activations=activations[is_answer],
            positive=texts.trigger[row[is_answer]],
            held_out=texts.held_out[row[is_answer]],
        )
        weights = torch.where(texts.decision[row, position], DECISION_WEIGHT, 1.0)
        return cls(activations, weights, [contrast_rows(pair, contrast, hook_name), answers])

    def turned(self, size: float, seed: int) -> "Rows":
        """Base against the same turned by a random map of rank 8: a difference of this size without an aim."""
        layout = StackedLayout((self.activations.shape[1] // 2,) * 2)
        random_map = RandomMap.draw(layout.split(self.activations)[0], size, 8, seed)
        stacked = random_map.stack(layout.split(self.activations)[0])
        return Rows(stacked, self.weights, [random_map.of_contrast(contrast, layout) for contrast in self.contrasts])


def looked(pair: slc.HookedModelPair, organism: Organism, folder: Path) -> FirstLook:
    """A first look at some training prompts, without their flags; kept for the next run."""
    if folder.exists():
        return FirstLook.load(folder)
    every = -(-len(organism.train) // N_LOOK)
    look = slc.first_look(pair, [p["prompt"] for p in organism.train[::every]])
    look.save(folder)
    return look


def changed_in(rows: Rows, hook_name: str, seed: int, folder: Path) -> tuple[Any, Changed]:
    """Train a crosscoder and its decoys, and name what changed."""
    how = audit_recipe(rows.activations.shape[1] // 2)
    batches = DrawnBatches(rows.activations, how.trainer.train_batch_size_samples, seed, rows.weights)
    crosscoder = how.train(iter(batches), seed=seed)
    crosscoder.cfg.metadata.hook_name = hook_name
    data = slc.EvalData(activations=rows.activations)
    options: dict[str, Any] = {"recipe": how, "weights": rows.weights, "seed": seed, "folder": folder}
    return crosscoder, slc.changed(crosscoder, data, rows.contrasts, **options)


def baselines(rows: Rows, seed: int) -> list[dict[str, Any]]:
    """Directions of the difference without a crosscoder, read on the held-out decision rows."""
    d_model = rows.activations.shape[1] // 2
    difference = rows.activations[:, d_model:] - rows.activations[:, :d_model]
    contrast = rows.contrasts[0]
    chosen, held = ([part[:, d_model:] - part[:, :d_model] for part in contrast.part(flag)] for flag in (False, True))
    groups = DifferenceRows(
        difference=torch.cat(chosen),
        labels=torch.tensor([0] * len(chosen[0]) + [1] * len(chosen[1])),
        names=("trigger", "other"),
    )
    everything = DifferenceRows(difference=difference)
    results: list[dict[str, Any]] = []
    for found in (
        mean_difference(groups, against="other"),
        difference_pca(everything, 10),
        train_difference_sae(everything, seed=seed),
    ):
        shares = found.contrast_shares(*held)
        area = auroc(*(found.activations(part) for part in held))
        best = torch.maximum(area, 1 - area)
        results.append(
            {
                "method": found.kind,
                "n_directions": len(found.names),
                "share": float(shares.nan_to_num().sum()),
                "largest_share": float(shares.nan_to_num().max()),
                "best_auroc": float(best.max()),
            }
        )
    return results


def facts_of(name: str, seed: int, found: Changed) -> dict[str, Any]:
    """A row of the result for one pair and seed."""
    contrasts: dict[str, dict[str, Any]] = {
        str(contrast): {str(column): value for column, value in row.items() if isinstance(value, int | float)}
        for contrast, row in found.contrasts.to_dict("index").items()
    }
    return {
        "pair": name,
        "seed": seed,
        "n_named": len(found.named),
        "n_turned": found.n_turned,
        "size": found.manifest["size"],
        **{figure: contrasts["decision"].get(figure, nan) for figure in ("share_named", "coverage", "best_auroc")},
        "contrasts": contrasts,
        "conclusion": found.conclusion,
    }


class Clock:
    """CPU seconds of each stage, those of earlier runs in this folder included."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.seconds: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        self._last = 0.0

    def lap(self, stage: str) -> None:
        """Charge the time since the last lap to a stage."""
        now = time.process_time()
        self.seconds[stage] = round(self.seconds.get(stage, 0.0) + now - self._last, 1)
        self._last = now
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(self.seconds))
        print(f"{stage}: {self.seconds[stage]:.0f} CPU seconds", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", required=True, help="folder with a LoRA adapter of SmolLM2 and prompts.json")
    parser.add_argument("--output", required=True)
    parser.add_argument("--page", help="an HTML page beside the JSON")
    parser.add_argument("--work", default="real_pair_work", help="folder that keeps models, answers and decoys")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the prompts: to try the script")
    args = parser.parse_args()
    torch.set_num_threads(1)
    validate_packages()
    organism = Organism.load(args.adapter, args.quick)
    work = Path(args.work)
    folder = work / f"{Path(args.adapter).name}{'_quick' if args.quick else ''}"
    clock = Clock(folder / "cpu_seconds.json")
    base = smollm2_folder(work / "smollm2")
    clock.lap("convert the base model")
    pair = slc.HookedModelPair.from_pretrained(
        base, f"{base}+adapter={args.adapter}", model_class_name="TransformerBridge"
    )
    look = looked(pair, organism, folder / "first_look")
    hook_name = look.recommendation.hook_name
    clock.lap("first look")
    print(look)
    if hook_name is None:
        raise ValueError(f"first_look recommends no hook: {look.recommendation.reason}")
    texts = Texts.of(pair, organism, folder, args.quick)
    clock.lap("answers")
    contrast = organism.contrast(pair.tokenizer)
    rows = Rows.kept(folder / "rows_adapter.safetensors", pair, texts, contrast, hook_name)
    clock.lap("harvest")
    results: list[dict[str, Any]] = []
    ladders: dict[int, pd.DataFrame] = {}
    for seed in args.seeds:
        crosscoder, found = changed_in(rows, hook_name, seed, folder / f"decoys_{seed}")
        results.append(facts_of("adapter", seed, found))
        print(found.conclusion, flush=True)
        clock.lap("crosscoder and decoys")
        if found.named:
            kept = folder / f"ladder_{seed}"
            ladder = Ladder.load(kept) if kept.exists() else climb(crosscoder, pair, contrast, found, organism, seed)
            ladder.save(kept)
            ladders[seed] = ladder.table
            print(ladder.table.drop(columns="answer").round(3).to_string(), flush=True)
            clock.lap("causal ladder")
    others = baselines(rows, args.seeds[0])
    clock.lap("baselines")
    results += null_results(rows, texts, contrast, hook_name, base, folder, clock)
    write(args, organism, look, results, ladders, others, clock)


def climb(
    crosscoder: Any, pair: slc.HookedModelPair, contrast: Contrast, found: Changed, organism: Organism, seed: int
) -> Ladder:
    """Add the named latents to base, and see whether its answers show the behaviour."""
    return causal_ladder(
        crosscoder, pair, contrast, found.named, organism.shows, max_new_tokens=ANSWER_TOKENS, seed=seed
    )


def null_results(
    rows: Rows, texts: Texts, contrast: Contrast, hook_name: str, base: str, folder: Path, clock: Clock
) -> list[dict[str, Any]]:
    """Three pairs without the behaviour, read in the same way on the same tokens."""
    layout = StackedLayout((rows.activations.shape[1] // 2,) * 2)
    size = size_of_difference(rows.activations, rows.contrasts, layout)
    neutral = neutral_adapter(base, folder.parent / "neutral")
    clock.lap("neutral adapter")
    names = {"jittered base": f"{base}+jitter=0.02", "neutral adapter": f"{base}+adapter={neutral}"}
    results: list[dict[str, Any]] = []
    for name in ("turned", *names):
        if name == "turned":
            null_rows = rows.turned(size, seed=777)
        else:
            null = slc.HookedModelPair.from_pretrained(base, names[name], model_class_name="TransformerBridge")
            null_rows = Rows.kept(folder / f"rows_{name.split()[0]}.safetensors", null, texts, contrast, hook_name)
        _, found = changed_in(null_rows, hook_name, 0, folder / f"decoys_{name.replace(' ', '_')}")
        results.append(facts_of(name, 0, found))
        print(name, found.conclusion, flush=True)
        clock.lap(f"null pair: {name}")
    return results


def write(
    args: Any,
    organism: Organism,
    look: FirstLook,
    results: list[dict[str, Any]],
    ladders: dict[int, pd.DataFrame],
    others: list[dict[str, Any]],
    clock: Clock,
) -> None:
    """Write the JSON, whose summary is of the first seed, and the page."""
    first, nulls = results[0], [row for row in results if row["pair"] != "adapter"]
    ladder = ladders.get(args.seeds[0])
    rates: dict[str, float] = {} if ladder is None else {str(k): float(v) for k, v in ladder["rate"].items()}
    controls = [rate for name, rate in rates.items() if name.startswith(("random", "noise"))]
    mean = [rate for name, rate in rates.items() if name.startswith("mean difference")]
    summary = {
        "share_named": first["share_named"],
        "best_auroc": first["best_auroc"],
        "causal_rate": rates.get("named", 0.0),
        "causal_rate_random": max(controls, default=0.0),
        "causal_rate_mean_difference": rates.get("mean difference", 0.0),
        "causal_rate_mean_difference_per_place": max(mean, default=0.0),
        "null_named": max(row["n_named"] for row in nulls),
        "cpu_minutes": round(sum(clock.seconds.values()) / 60, 1),
        "conclusion": first["conclusion"],
    }
    table = [{"seed": seed, **row} for seed, frame in ladders.items() for row in frame.reset_index().to_dict("records")]
    write_results(
        args.output,
        results,
        summary=summary,
        behaviour=organism.behaviour,
        hook_name=look.recommendation.hook_name,
        first_look=str(look),
        n_held_out=len(organism.held_out),
        ladder=table,
        baselines=others,
        cpu_seconds=clock.seconds,
    )
    print(json.dumps(summary, indent=1))
    if args.page:
        tables = {
            "Pairs": pd.DataFrame(results).drop(columns=["contrasts"]),
            "What base does with the named latents added": pd.DataFrame(table),
            "Baselines": pd.DataFrame(others),
            "Hooks": look.hooks.reset_index(),
        }
        write_page({**summary, "behaviour": organism.behaviour, "first look": str(look)}, tables, args.page)


def write_page(facts: dict[str, Any], tables: dict[str, pd.DataFrame], path: str) -> None:
    """Write facts and tables as one HTML file."""
    lines = [f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items()]
    parts = [
        f"<h2>{escape(name)}</h2><div>{table.round(3).to_html(index=False)}</div>" for name, table in tables.items()
    ]
    style = (
        "body{font:16px sans-serif;margin:2em auto;max-width:70em;padding:0 1em;color-scheme:light dark}"
        "div{overflow-x:auto}table{border-collapse:collapse}dt{font-weight:bold}"
        "td,th{padding:.3em .6em;text-align:right;border-bottom:1px solid #8886}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{_TITLE}</title><style>{style}</style>'
    Path(path).write_text("\n".join([head, f"<h1>{_TITLE}</h1><dl>", *lines, "</dl>", *parts, "</html>\n"]))


if __name__ == "__main__":
    main()
