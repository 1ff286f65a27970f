"""Checks the size that an audit states as its detection limit, on planted worlds.

python benchmarks/audit_limits.py --seeds 0 1 2 --output benchmarks/results/audit_limits.json

Each row is a planted world, a frequency, and the limit of one planting. New directions, of 1.5 times the limit and of
the limit / 1.5, are then planted into the same activations, each planting with a crosscoder of its own: nearly all of
the larger should be found, and few of the smaller.
"""

import argparse
import time
from typing import Any

import torch
from results_file import write_results

from sae_lens_crosscoder.analysis.audit.limits import least_sizes, plant_contrasts
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.synthetic import world_a
from sae_lens_crosscoder.workflows.auditing.rows import AuditRows, audit_recipe

N_TOKENS, N_PROMPTS = 16_000, 800
FACTOR = 1.5


def world_rows(seed: int) -> AuditRows:
    """Activations of a planted world; the first rows stand for the prompts' decisions."""
    tokens = world_a(seed).sample(N_TOKENS, seed=seed + 1)
    return AuditRows(tokens.activations, torch.arange(N_PROMPTS), torch.arange(N_PROMPTS) % 2 == 1, "planted")


def found(rows: AuditRows, layout: StackedLayout, sizes: dict[float, float], seed: int) -> dict[float, bool]:
    """By frequency, True if a direction of that size is found, by a crosscoder trained as an audit trains it."""
    planted = plant_contrasts(rows.activations, rows.decision_rows, rows.held_out, layout, sizes, seed)
    recipe = audit_recipe(layout.d_models[0])
    return planted.found(recipe.train(rows.batches(planted.activations, seed), seed=seed))


def checked(seed: int, n_plantings: int) -> list[dict[str, Any]]:
    """A row per frequency: the limit, and what new plantings around it find."""
    rows, layout = world_rows(seed), world_a(seed).layout
    start = time.process_time()
    limits = least_sizes(lambda sizes, round_number: found(rows, layout, sizes, seed + round_number))
    cost = time.process_time() - start
    measured: list[dict[str, Any]] = []
    for frequency, limit in limits.items():
        row: dict[str, Any] = {"seed": seed, "frequency": frequency, "limit": limit, "n_plantings": n_plantings}
        for name, size in (("larger", limit * FACTOR), ("smaller", limit / FACTOR)):
            seeds = range(100 * seed + 10, 100 * seed + 10 + n_plantings)
            row[f"n_{name}_found"] = sum(found(rows, layout, {frequency: size}, each)[frequency] for each in seeds)
        measured.append({**row, "limit_cpu_seconds": round(cost, 1)})
        print(measured[-1], flush=True)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--n-plantings", type=int, default=4)
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for seed in args.seeds for row in checked(seed, args.n_plantings)]
    if args.output:
        write_results(args.output, rows)


if __name__ == "__main__":
    main()
