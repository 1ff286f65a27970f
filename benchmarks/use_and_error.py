"""Latents used differently in planted worlds, and how often null runs are called different.

Without seeds, only the null runs are made; with --null_families 0 and --builtin_families 0, only the large worlds.

python benchmarks/use_and_error.py --seeds 0 1 --output benchmarks/results/use_and_error.json
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from builtin_nulls import BuiltinNull, builtin_family
from planted_training import BATCH, D_SAE, EVALUATION_TOKENS, LEARNING_RATE, POOL_TOKENS, as_loaded, trainer_config
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis import LatentUse
from sae_lens_crosscoder.analysis.diagnosis.null_runs import q_values
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE, Q_LIMIT
from sae_lens_crosscoder.analysis.use.result import use_q_values
from sae_lens_crosscoder.synthetic import (
    Concept,
    PlantedTokens,
    PlantedWorld,
    null_world,
    shuffled_batches,
    truth_table,
    world_a,
)

K = 4.5
"""Of all large worlds, so that all are trained in the same way."""
CHANGED = ("less_used",)
UNCHANGED = ("shared",)
STEPS = 2000
SMALL = {"d_model": 16, "d_sae": 48, "k": 1.0, "steps": 400, "batch": 128, "tokens": 15_000, "concepts": 24}
N_TIMED = 3
FAMILY = 4
"""Null runs of a family; each is judged against the other three."""


@dataclass(frozen=True)
class Run:
    """A crosscoder trained on a planted world or a null pair, with its readings on fresh tokens."""

    world: PlantedWorld | None
    crosscoder: slc.crosscoders.InferenceCrosscoder
    tokens: PlantedTokens | BuiltinNull
    diagnosis: slc.Diagnosis
    use: LatentUse
    seconds: dict[str, float]

    @classmethod
    def of(
        cls, world: PlantedWorld, trained: Any, tokens: PlantedTokens, seconds: float, n_timed: int = N_TIMED
    ) -> "Run":
        return cls.read(world, as_loaded(trained), tokens, seconds, n_timed)

    @classmethod
    def read(
        cls,
        world: PlantedWorld | None,
        crosscoder: slc.crosscoders.InferenceCrosscoder,
        tokens: PlantedTokens | BuiltinNull,
        seconds: float,
        n_timed: int = 1,
    ) -> "Run":
        data = slc.EvalData(activations=tokens.activations)
        # Interleaved, so that a slow machine slows both.
        timed: dict[str, list[float]] = {"diagnose": [], "latent_use": []}
        results: dict[str, Any] = {}
        for _ in range(n_timed):
            for name, function in (("diagnose", slc.diagnose), ("latent_use", slc.latent_use)):
                started = time.process_time()
                results[name] = function(crosscoder, data)
                timed[name].append(time.process_time() - started)
        medians = {name: statistics.median(values) for name, values in timed.items()}
        return cls(
            world, crosscoder, tokens, results["diagnose"], results["latent_use"], {"training": seconds, **medians}
        )

    def truth(self) -> tuple[PlantedWorld, pd.DataFrame]:
        """The planted world, and its truth per latent."""
        assert self.world is not None
        assert isinstance(self.tokens, PlantedTokens)
        return self.world, truth_table(self.world, self.crosscoder, self.tokens)

    def against(self, nulls: Sequence["Run"]) -> tuple[slc.Diagnosis, LatentUse]:
        """Diagnosis and use with q-values from null runs."""
        data = slc.EvalData(activations=self.tokens.activations)
        return (
            slc.diagnose(self.crosscoder, data, null=[run.diagnosis for run in nulls]),
            slc.latent_use(self.crosscoder, data, null=[run.use for run in nulls]),
        )


def trained_on(world: PlantedWorld, seed: int) -> Iterator[tuple[str, Any, float]]:
    """Yield the recipe's name, the crosscoder and the CPU seconds of its training: plain, then polished."""
    torch.manual_seed(seed)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=world.layout.d_models,
        d_sae=D_SAE,
        k=K,
        gradient_clip_norm=1.0,
        decoder_bias_init="zeros",
        topk_threshold_lr=0.01,
    )
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    batches = shuffled_batches(world.sample(POOL_TOKENS, seed=1000 + seed).activations, BATCH, seed)
    started = time.process_time()
    slc.CrosscoderTrainer(trainer_config(STEPS), crosscoder, batches).fit()
    yield "plain", crosscoder, time.process_time() - started
    yield "polish", polished(crosscoder, batches), time.process_time() - started


def polished(crosscoder: Any, batches: Any) -> Any:
    """Polish with the given k, which null runs must share."""
    return slc.training.polish(crosscoder, batches, slc.training.PolishConfig(lr=LEARNING_RATE / 5))


def large_runs(world: PlantedWorld, seed: int) -> dict[str, Run]:
    tokens = world.sample(EVALUATION_TOKENS, seed=2000 + seed)
    return {name: Run.of(world, crosscoder, tokens, s) for name, crosscoder, s in trained_on(world, seed)}


def use_rows(seeds: Sequence[int]) -> Iterator[dict[str, Any]]:
    """Yield a row per seed, world and recipe: the world `use` against two null twins, and these against each other."""
    for seed in seeds:
        runs = large_runs(world_a(seed, less_used=True), seed)
        nulls = [large_runs(null_world(twin, less_used=True), twin) for twin in (seed, seed + 100)]
        for recipe, run in runs.items():
            twins = [null[recipe] for null in nulls]
            about = {"part": "use", "seed": seed, "recipe": recipe}
            yield about | {"is_null": False} | judged(run, twins)
            for i, twin in enumerate(twins):
                others = twins[:i] + twins[i + 1 :]
                yield about | {"is_null": True} | judged(twin, others)


def judged(run: Run, nulls: Sequence[Run]) -> dict[str, Any]:
    """Score the ratios against the planted ones, among latents whose use is judged."""
    diagnosis, use = run.against(nulls)
    world, truth = run.truth()
    table = use.latents.join(truth)
    table["q"] = [world.concepts[i].q if i >= 0 else float("nan") for i in table.concept]
    read = table[table.readable & (table[["n_strong_base", "n_strong_chat"]].max(axis=1) >= MIN_ACTIVE)]
    changed, unchanged = read[read.kind.isin(CHANGED)], read[read.kind.isin(UNCHANGED)]
    planted = -np.log(changed.q)
    called = read[read.use.str.startswith("more_in")]
    return {
        "auroc": auroc(changed.log_use_ratio.abs().to_numpy(), unchanged.log_use_ratio.abs().to_numpy()),
        "spearman": float(changed.log_use_ratio.corr(planted, method="spearman")) if len(changed) > 2 else None,
        "median_error": float((changed.log_use_ratio - planted).abs().median()) if len(changed) else None,
        "n_changed": len(changed),
        "n_unchanged": len(unchanged),
        "frac_changed_called": float(changed.use.eq("more_in_chat").mean()) if len(changed) else None,
        "frac_unchanged_called": float(unchanged.use.str.startswith("more_in").mean()) if len(unchanged) else None,
        "n_called": len(called),
        "n_q_use": int((use.latents.q_use < Q_LIMIT).sum()),
        "n_specific": int(diagnosis.latents.verdict.isin(["chat_specific", "base_specific"]).sum()),
        "conclusion": use.conclusion,
        **{f"cpu_seconds_{name}": value for name, value in run.seconds.items()},
        "cost_over_diagnose": run.seconds["latent_use"] / run.seconds["diagnose"],
    }


def auroc(higher: np.ndarray, lower: np.ndarray) -> float | None:
    if len(higher) == 0 or len(lower) == 0:
        return None
    return float((higher[:, None] > lower).mean() + 0.5 * (higher[:, None] == lower).mean())


def small_world(seed: int, null: bool) -> PlantedWorld:
    """Build 24 concepts in 16 dimensions: all turned a little, or six less used by base, and four chat-only."""
    draws = torch.rand(2, int(SMALL["concepts"]), generator=torch.Generator().manual_seed(seed)).tolist()
    probabilities = [0.02 * 4**draw for draw in draws[0]]
    turned = [Concept("rotated", p, angle_degrees=15 * a) for p, a in zip(probabilities, draws[1], strict=True)]
    if not null:
        for i in range(6):
            turned[i] = Concept("less_used", probabilities[i], q=0.3 + 0.08 * i)
        turned[6:10] = [Concept("chat_only", p) for p in probabilities[6:10]]
    width = int(SMALL["d_model"])
    return PlantedWorld(turned, (width, width), seed, noise=0.03)


def small_run(seed: int, null: bool) -> Run:
    world = small_world(seed, null)
    torch.manual_seed(seed)
    width, batch = int(SMALL["d_model"]), int(SMALL["batch"])
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=(width, width), d_sae=int(SMALL["d_sae"]), k=SMALL["k"], gradient_clip_norm=1.0
    )
    steps = int(SMALL["steps"])
    trainer = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * batch,
        train_batch_size_samples=batch,
        lr=5e-3,
        lr_warm_up_steps=steps // 20,
        lr_decay_steps=steps // 5,
        dead_feature_window=100,
    )
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    pool = world.sample(int(SMALL["tokens"]), seed=1000 + seed).activations
    started = time.process_time()
    batches = shuffled_batches(pool, batch, seed)
    slc.CrosscoderTrainer(trainer, crosscoder, batches).fit()
    cfg = slc.training.PolishConfig(lr=1e-3, n_rounds=4, n_tokens_per_round=4096, n_steps=200)
    crosscoder = slc.training.polish(crosscoder, batches, cfg)
    tokens = world.sample(int(SMALL["tokens"]), seed=2000 + seed)
    return Run.of(world, crosscoder, tokens, time.process_time() - started, n_timed=1)


def calibration_rows(n_families: int) -> Iterator[dict[str, Any]]:
    """Yield a row per null run, judged against the others of its family, and one per family's pair with changes."""
    for family in range(n_families):
        first = 10_000 + 10 * family
        nulls = [small_run(first + i, null=True) for i in range(FAMILY)]
        for i, run in enumerate(nulls):
            yield called(run, nulls[:i] + nulls[i + 1 :]) | {"world": "planted", "family": family, "is_null": True}
        changed = small_run(first + FAMILY, null=False)
        about = {"world": "planted", "family": family, "is_null": False}
        yield called(changed, nulls[1:]) | about | power(changed, nulls[1:])


def builtin_rows(n_families: int) -> Iterator[dict[str, Any]]:
    """Yield a row per null run of the built-in pair, judged against the others of its family."""
    for family in range(n_families):
        nulls = [Run.read(None, null.crosscoder, null, null.seconds) for null in builtin_family(family)]
        for i, run in enumerate(nulls):
            assert isinstance(run.tokens, BuiltinNull)
            about = {"world": "built-in", "kind": run.tokens.kind, "family": family, "is_null": True}
            fve = {"fve": run.diagnosis.manifest["fve"]["chat"], "cpu_seconds_training": run.seconds["training"]}
            others = nulls[:i] + nulls[i + 1 :]
            of_other_kind = [null for null in others if null.crosscoder.cfg.metadata.null_kind != run.tokens.kind]
            by_pooling = {"pooled": others, "other_kind": of_other_kind}
            yield called(run, others) | pooled_calls(run, by_pooling) | about | fve


def called(run: Run, nulls: Sequence[Run]) -> dict[str, Any]:
    """Count what is called different, and at q < 0.1."""
    diagnosis, use = run.against(nulls)
    row: dict[str, Any] = {"part": "calibration"}
    for name, is_called in calls(diagnosis, use).items():
        row[f"n_called_{name}"] = int(is_called.sum())
    for name, q in (("use", use.latents.q_use), ("specific", diagnosis.latents.q_value)):
        row |= {f"n_q_{name}": int((q < Q_LIMIT).sum()), f"n_judged_{name}": int(q.notna().sum())}
    return row


def pooled_calls(run: Run, nulls: dict[str, Sequence[Run]]) -> dict[str, int]:
    """Count latents with a q below 0.1 when all given runs are pooled, whatever their kinds."""
    row: dict[str, int] = {}
    table, names = run.use.latents, run.use.names
    for name, runs in nulls.items():
        q_use = use_q_values(table, names, [each.use for each in runs], MIN_ACTIVE)
        q_specific = q_values(run.diagnosis.latents, [each.diagnosis.latents for each in runs])
        row |= {f"n_q_use_{name}": int((q_use < Q_LIMIT).sum())}
        row |= {f"n_q_specific_{name}": int((q_specific < Q_LIMIT).sum())}
    return row


def calls(diagnosis: slc.Diagnosis, use: LatentUse) -> dict[str, pd.Series]:
    """Latents that are called different in use, and specific."""
    specific = diagnosis.latents.verdict.isin(["chat_specific", "base_specific"])
    return {"use": use.latents.use.str.startswith("more_in"), "specific": specific}


def power(run: Run, nulls: Sequence[Run]) -> dict[str, Any]:
    """Shares of the changed concepts that are found, and of the calls of changed use that are wrong."""
    diagnosis, use = run.against(nulls)
    world, truth = run.truth()
    row: dict[str, Any] = {}
    right: dict[str, Callable[[pd.Series], pd.Series]] = {
        "use": lambda kind: kind.isin(["less_used", "chat_only"]),
        "specific": lambda kind: kind.eq("chat_only"),
    }
    wanted = {"use": "less_used", "specific": "chat_only"}
    for name, is_called in calls(diagnosis, use).items():
        is_right = right[name](truth.kind)
        found = set(truth.concept[is_called & truth.kind.eq(wanted[name])])
        n_wanted = len(world.indices(wanted[name]))  # pyright: ignore[reportArgumentType]
        if name == "use":  # a score card says more of specific latents
            row["false_share_use"] = float((is_called & ~is_right).sum() / max(1, is_called.sum()))
        row[f"power_{name}"] = len(found) / n_wanted
    return row


def wilson(n_hits: int, n: int) -> list[float]:
    """95 % interval of a share."""
    z, share = 1.96, n_hits / n
    middle, half = share + z**2 / (2 * n), z * (share * (1 - share) / n + z**2 / (4 * n**2)) ** 0.5
    return [max(0.0, (middle - half) / (1 + z**2 / n)), (middle + half) / (1 + z**2 / n)]


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Summarise whichever parts were run."""
    frame = pd.DataFrame(list(rows))
    parts = {"use": use_summary, "calibration": calibration_summary}
    figures: dict[str, Any] = {}
    for name, summarise in parts.items():
        if (frame.part == name).any():
            figures |= summarise(frame[frame.part == name])
    return figures


def use_summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Medians and the worst of the world `use`, and the null twins in which any use was called different."""
    is_null = frame.is_null.astype(bool)
    figures: dict[str, Any] = {}
    for recipe, part in frame[~is_null].groupby("recipe"):
        suffix = "" if recipe == "polish" else f"_{recipe}"
        figures |= {f"use_{name}{suffix}": float(part[name].median()) for name in ("auroc", "spearman", "median_error")}
        figures |= {f"use_{name}{suffix}_worst": float(part[name].min()) for name in ("auroc", "spearman")}
    return figures | {
        "n_large_null_runs": int(is_null.sum()),
        "n_large_null_runs_called": int((frame[is_null].n_q_use > 0).sum()),
        "cost_over_diagnose": float(frame.cost_over_diagnose.median()),
    }


def calibration_summary(frame: pd.DataFrame) -> dict[str, Any]:
    """Share of null runs in which anything was called different at q < 0.1, and the power where something is."""
    is_null = frame.is_null.astype(bool)
    nulls, changed = frame[is_null], frame[~is_null]
    n = len(nulls)
    any_false = {name: nulls[f"n_q_{name}"] > 0 for name in ("use", "specific")}
    any_false[""] = any_false["use"] | any_false["specific"]
    of_kinds = nulls[nulls.kind.notna()] if "kind" in nulls else nulls[:0]
    figures: dict[str, Any] = {"n_null_runs": n}
    for name, is_false in any_false.items():
        suffix = f"_{name}" if name else ""
        figures[f"false_share_at_q{suffix}"] = float(is_false.mean())
        figures[f"false_share_at_q{suffix}_interval"] = wilson(int(is_false.sum()), n)
    for world, part in nulls.groupby("world"):
        suffix = str(world).replace("-", "")
        figures[f"n_null_runs_{suffix}"] = len(part)
        figures[f"n_null_runs_called_{suffix}"] = int(any_false[""][part.index].sum())
    for kind, part in of_kinds.groupby("kind"):
        figures[f"n_null_runs_{kind}"] = len(part)
        for suffix in ("", "_pooled", "_other_kind"):
            is_false = (part[f"n_q_use{suffix}"] > 0) | (part[f"n_q_specific{suffix}"] > 0)
            figures[f"false_share_at_q_{kind}{suffix}"] = float(is_false.mean())
            figures[f"false_share_at_q_{kind}{suffix}_interval"] = wilson(int(is_false.sum()), len(part))
    return figures | {
        "power_at_q": float(changed.power_use.mean()),
        "power_at_q_specific": float(changed.power_specific.mean()),
        "n_changed_runs": len(changed),
        "false_share_use_among_changes": float(changed.false_share_use.mean()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    parser.add_argument("--null_families", type=int, default=20)
    parser.add_argument("--builtin_families", type=int, default=12)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    parts = (builtin_rows(arguments.builtin_families), calibration_rows(arguments.null_families))
    for part in (use_rows(arguments.seeds), *parts):
        for row in part:
            rows.append(row)
            print({name: value for name, value in row.items() if name != "conclusion"}, flush=True)
    write_results(arguments.output, rows, summary=summary(rows))


if __name__ == "__main__":
    main()
