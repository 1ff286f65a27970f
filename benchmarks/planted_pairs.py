"""Crosscoders on worlds with known answers: who finds the chat-only concepts, and who falls into which trap.

python benchmarks/planted_pairs.py --suite small --seeds 0 1 2 --output benchmarks/results/planted_pairs.json
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pandas as pd
import torch
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.planted import PlantedWorld, null_world, shuffled_batches, world_a
from sae_lens_crosscoder.analysis.score_card import ScoreCard, match_concepts, score_card

STEPS, BATCH, D_SAE = 2000, 512, 256
POOL_TOKENS, EVALUATION_TOKENS = 120_000, 24_000


@dataclass(frozen=True)
class Cell:
    """One way of training, on one kind of world."""

    name: str
    architecture: str
    fields: dict[str, Any] = field(default_factory=dict)
    k_over_l0: float = 1.0
    world: Callable[[int], PlantedWorld] = world_a


L1_UNSQUARED = {"l1_coefficient": 0.10}
L1_SQUARED = {"l1_coefficient": 0.8, "reconstruction_loss": "mse"}
SUITES = {
    "claims": [Cell("A", "crosscoder", L1_UNSQUARED), Cell("batchtopk", "batchtopk_crosscoder")],
    "small": [
        Cell("A", "crosscoder", L1_UNSQUARED),
        Cell("B", "crosscoder", L1_SQUARED),
        Cell("batchtopk", "batchtopk_crosscoder"),
        Cell("batchtopk half k, sum", "batchtopk_crosscoder", k_over_l0=0.5),
        Cell("batchtopk half k, max", "batchtopk_crosscoder", {"score": "max"}, k_over_l0=0.5),
        Cell("null, L1", "crosscoder", L1_UNSQUARED, world=null_world),
        Cell("null, batchtopk", "batchtopk_crosscoder", world=null_world),
    ],
}


def build(cell: Cell, world: PlantedWorld, seed: int) -> Any:
    """The crosscoder of a cell, at its start."""
    torch.manual_seed(seed)
    widths = {"d_models": world.layout.d_models, "d_sae": D_SAE, "gradient_clip_norm": 1.0}
    if cell.architecture == "crosscoder":
        fields = {"decoder_init_norm": 0.3, "l1_warm_up_steps": STEPS // 5} | cell.fields
        return slc.L1TrainingCrosscoder(slc.L1CrosscoderTrainingConfig(**widths, **fields))
    fields = {"k": cell.k_over_l0 * world.l0, "decoder_bias_init": "zeros", "topk_threshold_lr": 0.01} | cell.fields
    return slc.BatchTopKTrainingCrosscoder(slc.BatchTopKCrosscoderTrainingConfig(**widths, **fields))


def train(cell: Cell, world: PlantedWorld, seed: int) -> slc.InferenceCrosscoder:
    """Train through the public trainer, and return what a user would load."""
    crosscoder = build(cell, world, seed)
    pool = world.sample(POOL_TOKENS, seed=1000 + seed).activations
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-3,
        lr_warm_up_steps=STEPS * 3 // 100,
        lr_decay_steps=STEPS // 5,
        dead_feature_window=200,
    )
    slc.CrosscoderTrainer(cfg, crosscoder, shuffled_batches(pool, BATCH, seed)).fit()
    with tempfile.TemporaryDirectory() as folder:
        crosscoder.save_inference_model(folder)
        return slc.load(folder)


def measure(cell: Cell, seed: int) -> dict[str, Any]:
    """One row: train, diagnose on fresh tokens, score against the truth."""
    started = time.process_time()
    world = cell.world(seed)
    crosscoder = train(cell, world, seed)
    tokens = world.sample(EVALUATION_TOKENS, seed=2000 + seed)
    table = slc.diagnose(crosscoder, activations=tokens.activations.split(2048))
    card: ScoreCard = score_card(world, crosscoder, tokens, table)
    weak = median_nu_error_of_weak(world, crosscoder, table)
    details = crosscoder.cfg.metadata.training_architecture_details
    return {
        "cell": cell.name,
        "seed": seed,
        "architecture": cell.architecture,
        "mu": details.get("l1_coefficient"),
        "k": details.get("k"),
        "true_l0": world.l0,
        "score": crosscoder.cfg.score,
        "fve_base": table.attrs["fve"]["base"],
        "fve_chat": table.attrs["fve"]["chat"],
        "l0": table.attrs["l0"],
        **asdict(card),
        **weak,
        "cpu_seconds": time.process_time() - started,
    }


def median_nu_error_of_weak(world: PlantedWorld, crosscoder: slc.InferenceCrosscoder, table: Any) -> dict[str, float]:
    """Median nu_error over latents that match a weak concept: it should be the planted rho."""
    concepts = pd.Series(match_concepts(world, crosscoder).tolist())
    medians: dict[str, float] = {}
    for rho in (0.25, 0.35, 0.5):
        wanted = [i for i in world.indices("weak") if world.concepts[i].rho == rho]
        chosen = table[concepts.isin(wanted) & ~table.dead]
        medians[f"median_nu_error_rho_{rho}"] = float(chosen.nu_error.median()) if wanted else float("nan")
    return medians


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--suite", choices=sorted(SUITES), default="claims")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for cell in SUITES[args.suite]:
            rows.append(measure(cell, seed))
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in rows[-1].items()}, flush=True)
            write_results(args.output, rows, steps=STEPS, batch=BATCH, d_sae=D_SAE)


if __name__ == "__main__":
    main()
