"""Trains crosscoders on planted worlds: which find the concepts of one model, and which fall into a trap.

python benchmarks/planted_pairs.py --suite small --seeds 0 1 2 --output benchmarks/results/planted_pairs.json
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from typing import Any, get_args

import pandas as pd
import torch
from planted_hard import SITUATIONS, hard_rows
from planted_training import (
    BATCH,
    D_SAE,
    EVALUATION_TOKENS,
    LEARNING_RATE,
    POOL_TOKENS,
    as_loaded,
    card_columns,
    evaluation_data,
    polished,
    trainer_config,
)
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic import (
    NullKind,
    PlantedWorld,
    concept_recovery,
    null_activations,
    null_world,
    score_card,
    shuffled_batches,
    truth_table,
    world_a,
)

L1, BATCHTOPK, TOPK = "crosscoder", "batchtopk_crosscoder", "topk_crosscoder"
MATRYOSHKA, JUMPRELU = "matryoshka_batchtopk_crosscoder", "jumprelu_crosscoder"
STEPS = {L1: 3000, BATCHTOPK: 2500, TOPK: 2500, MATRYOSHKA: 2500, JUMPRELU: 2500}
ARCHITECTURES = {
    BATCHTOPK: (slc.BatchTopKCrosscoderTrainingConfig, slc.BatchTopKTrainingCrosscoder),
    TOPK: (slc.crosscoders.TopKCrosscoderTrainingConfig, slc.crosscoders.TopKTrainingCrosscoder),
    MATRYOSHKA: (
        slc.crosscoders.MatryoshkaBatchTopKCrosscoderTrainingConfig,
        slc.crosscoders.MatryoshkaBatchTopKTrainingCrosscoder,
    ),
    JUMPRELU: (slc.crosscoders.JumpReLUCrosscoderTrainingConfig, slc.crosscoders.JumpReLUTrainingCrosscoder),
}


@dataclass(frozen=True)
class Cell:
    """One training setting on one kind of world."""

    name: str
    architecture: str
    fields: dict[str, Any] = field(default_factory=dict)
    k_over_l0: float = 1.0
    world: Callable[[int], PlantedWorld] = world_a
    world_name: str = "A"
    null_run: NullKind | None = None
    """Also train on this null pair, and take q-values from it."""
    trains_on: NullKind | None = None
    """Train and diagnose on this null pair made from the world, instead of on the world."""
    polish: bool = False
    """Polish the crosscoder after training."""
    steps: int | None = None
    """Number of training steps, if different from `STEPS`."""


UNSQUARED = {"l1_coefficient": 0.10}
SQUARED = {"l1_coefficient": 0.8, "reconstruction_loss": "mse"}
SCALED = {"activation_scaling": "per_model"}


def claims() -> list[Cell]:
    """List the two crosscoders that the paper compares."""
    return [Cell("A", L1, UNSQUARED), Cell("batchtopk", BATCHTOPK)]


def small() -> list[Cell]:
    """List the paper's claims, BatchTopK with half its k, and worlds in which nothing differs."""
    null: dict[str, Any] = {"world": null_world, "world_name": "null", "null_run": "jittered"}
    return [
        Cell("A", L1, UNSQUARED),
        Cell("B", L1, SQUARED),
        Cell("batchtopk", BATCHTOPK),
        Cell("batchtopk half k, sum", BATCHTOPK, k_over_l0=0.5),
        Cell("batchtopk half k, max", BATCHTOPK, {"score": "max"}, k_over_l0=0.5),
        Cell("null, L1", L1, UNSQUARED, **null),
        Cell("null, batchtopk", BATCHTOPK, **null),
    ]


WORLDS: dict[str, Callable[[int], PlantedWorld]] = {
    "d_model 32": partial(world_a, d_models=(32, 32)),
    "d_model 128": partial(world_a, d_models=(128, 128)),
    "widths 64 and 48": partial(world_a, d_models=(64, 48)),
    "random directions": partial(world_a, directions="random"),
    "rare concepts": partial(world_a, probabilities=(0.002, 0.008)),
    "frequent concepts": partial(world_a, probabilities=(0.04, 0.12)),
    "weak exclusives": partial(world_a, exclusive_size=0.7),
    "rare weak exclusives": partial(world_a, exclusive_probability=0.003, exclusive_size=0.7),
    "co-occurring exclusives": partial(world_a, co_occurring=True),
    "weak in chat": partial(world_a, mirrored=True),
    "equal magnitudes": partial(world_a, magnitude_cv=0.0),
    "uneven magnitudes": partial(world_a, magnitude_cv=0.6),
    "chat 3 times louder": partial(world_a, gains=(1.0, 3.0)),
    "chat 50 times louder": partial(world_a, gains=(1.0, 50.0)),
}


def full() -> list[Cell]:
    """List everything: `small`, curves over mu and k for every score, variations of the world, starts, null pairs."""
    cells = small()
    cells += [Cell("mu", L1, {"l1_coefficient": mu}) for mu in (0.025, 0.05, 0.15, 0.2)]
    cells += [Cell("mu, squared", L1, {**SQUARED, "l1_coefficient": mu}) for mu in (0.1, 0.2, 0.4)]
    cells += [Cell("mu, l2", L1, {"l1_coefficient": mu, "score": "l2"}) for mu in (0.09, 0.18)]
    cells += [
        Cell(f"k, {score}", BATCHTOPK, {"score": score}, k_over_l0=share)
        for score in ("sum", "max", "l2")
        for share in (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)
    ]
    cells += [
        Cell(f"{name}, {short}", architecture, fields, world=world, world_name=name)
        for name, world in WORLDS.items()
        for short, architecture, fields in (("L1", L1, UNSQUARED), ("batchtopk", BATCHTOPK, {}))
    ]
    cells += [
        Cell(f"{name}, {short}, scaled", architecture, fields | SCALED, world=WORLDS[name], world_name=name)
        for name in ("chat 3 times louder", "chat 50 times louder")
        for short, architecture, fields in (("L1", L1, UNSQUARED), ("batchtopk", BATCHTOPK, {}))
    ]
    cells += [
        Cell("independent start, L1", L1, {**UNSQUARED, "initialisation": "independent"}),
        Cell("independent start, batchtopk", BATCHTOPK, {"initialisation": "independent"}),
        Cell("A, with a null run", L1, UNSQUARED, null_run="jittered"),
        Cell("batchtopk, with a null run", BATCHTOPK, null_run="jittered"),
    ]
    cells += [Cell(f"{kind} pair, batchtopk", BATCHTOPK, trains_on=kind) for kind in get_args(NullKind)]
    return cells


def recipes() -> list[Cell]:
    """List partition and polish beside plain BatchTopK: at ease, in superposition, with half k, on a null."""
    situations: dict[str, dict[str, Any]] = {
        "standard": {},
        "d_model 32": {"world": WORLDS["d_model 32"], "world_name": "d_model 32"},
        "half k": {"k_over_l0": 0.5},
        "null": {"world": null_world, "world_name": "null"},
    }
    partition = {"n_base_exclusive": D_SAE // 16, "n_chat_exclusive": D_SAE // 8}
    return [
        Cell(f"{name}, {recipe}", BATCHTOPK, fields, polish=polish, **situation)
        for name, situation in situations.items()
        for recipe, fields, polish in (("plain", {}, False), ("partition", partition, False), ("polish", {}, True))
    ]


def architectures() -> list[Cell]:
    """List the architectures with a given number of active latents, on one stream: at ease, with half k, on a null."""
    situations: dict[str, dict[str, Any]] = {
        "standard": {},
        "half k": {"k_over_l0": 0.5},
        "null": {"world": null_world, "world_name": "null"},
    }
    fields: dict[str, dict[str, Any]] = {
        MATRYOSHKA: {"matryoshka_widths": (D_SAE // 8, D_SAE // 2)},
        JUMPRELU: {"jumprelu_sparsity_loss_mode": "quadratic", "l0_coefficient": 0.003},
    }
    return [
        Cell(f"{name}, {architecture.removesuffix('_crosscoder')}", architecture, fields.get(architecture, {}), **cell)
        for name, cell in situations.items()
        for architecture in ARCHITECTURES
    ]


def scores() -> list[Cell]:
    """List the hard worlds with both scores, and where k is uncertain also polished."""
    return [
        Cell(
            f"{situation.name}, {score}{', polish' if polish else ''}",
            BATCHTOPK,
            {"score": score},
            situation.k_over_l0,
            partial(situation.world, **situation.options),
            situation.name,
            polish=polish,
        )
        for polish, situation, score in product((False, True), SITUATIONS, ("sum", "max"))
        if not polish or situation.name in ("standard", "half k", "twice k")
    ]


def training_steps() -> list[Cell]:
    """The sparse training step, with either screening, and the dense one: the same crosscoder must come out."""
    fields = {
        "dense": {"training_step": "dense"},
        "sparse, float32": {"screening": "float32"},
        "sparse, bfloat16": {"screening": "bfloat16"},
    }
    return [Cell(name, BATCHTOPK, chosen, steps=2000) for name, chosen in fields.items()]


def l1() -> list[Cell]:
    """List L1 at ease, in the worlds in which it bends, with a louder model, and with an independent start."""
    easier = {"d_model 128", "weak in chat", "equal magnitudes", "uneven magnitudes", "chat 3 times louder"}
    names = {f"{name}, L1" for name in WORLDS if name not in easier}
    names |= {"A", "chat 50 times louder, L1, scaled", "independent start, L1"}
    return [cell for cell in full() if cell.name in names]


SUITES: dict[str, Callable[[], list[Cell]]] = {
    "claims": claims,
    "small": small,
    "full": full,
    "l1": l1,
    "recipes": recipes,
    "architectures": architectures,
    "scores": scores,
    "training_steps": training_steps,
}


def build(cell: Cell, world: PlantedWorld, seed: int) -> Any:
    """The crosscoder of a cell, at its start."""
    torch.manual_seed(seed)
    widths = {"d_models": world.layout.d_models, "d_sae": D_SAE, "gradient_clip_norm": 1.0}
    if cell.architecture == L1:
        fields = {"decoder_init_norm": 0.3, "l1_warm_up_steps": STEPS[L1] // 5} | cell.fields
        return slc.L1TrainingCrosscoder(slc.L1CrosscoderTrainingConfig(**widths, **fields))
    n_active = cell.k_over_l0 * world.l0
    if cell.architecture == TOPK:
        n_active = round(n_active)
    fields = (
        {"target_l0": n_active}
        if cell.architecture == JUMPRELU
        else {"k": n_active, "decoder_bias_init": "zeros", "topk_threshold_lr": 0.01}
    )
    config, crosscoder = ARCHITECTURES[cell.architecture]
    return crosscoder(config(**widths, **fields | cell.fields))


def train(
    cell: Cell, world: PlantedWorld, seed: int, null: NullKind | None = None
) -> slc.crosscoders.InferenceCrosscoder:
    """Train through the public trainer, and return what a user would load."""
    crosscoder = build(cell, world, seed)
    batches = shuffled_batches(world.sample(POOL_TOKENS, seed=1000 + seed).activations, BATCH, seed)
    if null is not None:
        batches = null_activations(batches, world.layout, null, seed=seed)
    slc.CrosscoderTrainer(trainer_config(cell.steps or STEPS[cell.architecture]), crosscoder, batches).fit()
    if cell.polish:
        crosscoder = polished(crosscoder, batches)
    return as_loaded(crosscoder)


def run(cell: Cell, seed: int) -> tuple[dict[str, Any], pd.DataFrame]:
    """Train, diagnose on fresh tokens, score against the truth.

    Returns:
        One row of numbers, and the concepts of the world with what was said about each.
    """
    started = time.process_time()
    world = cell.world(seed)
    tokens = world.sample(EVALUATION_TOKENS, seed=2000 + seed)
    crosscoder = train(cell, world, seed, cell.trains_on)

    def diagnosed(trained: slc.crosscoders.InferenceCrosscoder, on: NullKind | None, **options: Any) -> slc.Diagnosis:
        data = evaluation_data(world, tokens)
        if on is not None:
            batches = null_activations(tokens.activations.split(2048), world.layout, on, seed=3000 + seed)
            data = slc.EvalData(activations=batches)
        return slc.diagnose(trained, data, **options)

    null = None
    if cell.null_run is not None:
        null = diagnosed(train(cell, world, 5000 + seed, cell.null_run), cell.null_run)
    diagnosis = diagnosed(crosscoder, cell.trains_on, null=null, free_directions="all")
    table, manifest = diagnosis.latents, diagnosis.manifest
    truth = truth_table(world, crosscoder, tokens)
    details = crosscoder.cfg.metadata.training_architecture_details
    flagged = table.label.isin(["chat_only", "base_only"])
    row = {
        "cell": cell.name,
        "seed": seed,
        "world": cell.world_name,
        "note": note(cell),
        "evaluation_tokens": EVALUATION_TOKENS,
        "architecture": cell.architecture,
        "mu": details.get("l1_coefficient"),
        "k": details.get("k"),
        "true_l0": world.l0,
        "score": crosscoder.cfg.score,
        "fve_base": manifest["fve"]["base"],
        "fve_chat": manifest["fve"]["chat"],
        "fve_pooled": manifest["fve"]["pooled"],
        "l0": manifest["l0"],
        "n_flagged": int((table.label == "chat_only").sum()),
        "n_flagged_either_side": int(flagged.sum()),
        "n_flagged_below_q": int((flagged & (table.q_value < 0.1)).sum()) if cell.null_run else None,
        "conclusion": diagnosis.conclusion,
        **card_columns(asdict(score_card(world, truth, table))),
        **rotated(world, table.join(truth)),
        **{f"median_nu_error_rho_{rho}": value for rho, value in median_nu_error_of_weak(world, table, truth).items()},
        "cpu_seconds": time.process_time() - started,
    }
    return row, concept_recovery(world, truth, table)


def note(cell: Cell) -> str | None:
    """Return what the figures of a cell do not mean."""
    is_scaled = cell.fields.get("activation_scaling") is not None
    if cell.world_name.endswith("louder") and not is_scaled:
        return "a definition, not a failure: truth is in coefficients, Delta_norm in raw activations"
    return None


def rotated(world: PlantedWorld, frame: pd.DataFrame) -> dict[str, float]:
    """Return the least nu_free and the largest error of the angle, over latents of rotated concepts that fire often."""
    frame = frame[(frame.kind == "rotated") & (frame.n_active >= 100)]
    planted = pd.Series([world.concepts[index].angle_degrees for index in frame.concept], frame.index, dtype=float)
    turned = planted >= 45  # a null world has jitter only
    return {
        "rotated_min_nu_free": float(frame.nu_free[turned].min()),
        "rotated_max_angle_error_degrees": float((frame.angle_degrees - planted)[turned].abs().max()),
    }


def median_nu_error_of_weak(world: PlantedWorld, table: pd.DataFrame, truth: pd.DataFrame) -> dict[float, float]:
    """Return the median nu_error of live latents that match a weak concept, by the planted rho it should equal."""
    medians: dict[float, float] = {}
    for rho in (0.25, 0.35, 0.5):
        wanted = [i for i in world.indices("weak") if world.concepts[i].rho == rho]
        medians[rho] = float(table.nu_error[truth.concept.isin(wanted) & ~table.dead].median())
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=sorted([*SUITES, "hard"]), default="claims")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--worlds", nargs="+", choices=[s.name for s in SITUATIONS], help="with --suite hard; all")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    if args.worlds and args.suite != "hard":
        parser.error(f"--worlds chooses among the worlds of --suite hard, but the suite is {args.suite}.")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    recoveries: dict[str, Any] = {}
    if args.suite == "hard":
        for row in hard_rows(args.seeds, STEPS[BATCHTOPK], args.worlds):
            rows.append(row)
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
            write_results(args.output, rows, steps=STEPS[BATCHTOPK], lr=LEARNING_RATE, batch=BATCH, d_sae=D_SAE)
        return
    for seed in args.seeds:
        for cell in SUITES[args.suite]():
            row, recovery = run(cell, seed)
            rows.append(row)
            if cell.name in ("A", "batchtopk", "rare concepts, batchtopk", "frequent concepts, batchtopk"):
                shown = recovery[["kind", "firing_probability", "label", "verdict"]]
                recoveries[f"{cell.name}, seed {seed}"] = shown.to_dict(orient="list")
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
            write_results(
                args.output, rows, steps=STEPS, lr=LEARNING_RATE, batch=BATCH, d_sae=D_SAE, concepts=recoveries
            )


if __name__ == "__main__":
    main()
