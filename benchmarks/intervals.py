"""Measures the coverage of the intervals of nu: how often a 95 % interval contains the nu of a million fresh tokens.

python benchmarks/intervals.py --seeds 0 --output benchmarks/results/intervals.json
"""

import argparse
import time
from typing import Any

import torch
from planted_pairs import EVALUATION_TOKENS, claims, train
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic import PlantedWorld

N_RESAMPLES, TRUTH_TOKENS, MIN_ACTIVE = 20, 1_000_000, 100
TARGETS = ("error", "reconstruction")


@torch.no_grad()
def scaling_of(
    world: PlantedWorld, crosscoder: slc.crosscoders.InferenceCrosscoder, n_tokens: int, seed: int
) -> slc.analysis.LatentScaling:
    """Run Latent Scaling on fresh tokens."""
    scaling = slc.analysis.LatentScaling(crosscoder)
    for part in range(-(-n_tokens // EVALUATION_TOKENS)):
        tokens = min(EVALUATION_TOKENS, n_tokens - part * EVALUATION_TOKENS)
        for batch in world.sample(tokens, seed=seed + part).activations.split(2048):
            feature_acts = crosscoder.encode_sparse(batch)
            scaling.add(batch, feature_acts, crosscoder.decode(feature_acts))
    return scaling


def coverage(seed: int) -> list[dict[str, Any]]:
    """Build a row per crosscoder, target and probe, pooled over resamples and latents that fire often enough."""
    rows: list[dict[str, Any]] = []
    for cell in claims():
        started = time.process_time()
        world = cell.world(seed)
        crosscoder = train(cell, world, seed)
        truth = scaling_of(world, crosscoder, TRUTH_TOKENS, seed=1_000_000)
        covered: dict[tuple[str, int], list[torch.Tensor]] = {}
        for resample in range(N_RESAMPLES):
            sample = scaling_of(world, crosscoder, EVALUATION_TOKENS, seed=2_000_000 + resample)
            for target in TARGETS:
                for probe in (0, 1):
                    low, high = sample.nu_interval(target, probe)
                    true = truth.nu(target, probe)
                    judged = (sample.n_active >= MIN_ACTIVE) & low.isfinite() & true.isfinite()
                    covered.setdefault((target, probe), []).append(((low <= true) & (true <= high))[judged])
        for (target, probe), parts in covered.items():
            pooled = torch.cat(parts).double()
            rows.append(
                {
                    "cell": cell.name,
                    "seed": seed,
                    "target": target,
                    "probe": ("base", "chat")[probe],
                    "coverage": pooled.mean().item(),
                    "n_intervals": len(pooled),
                    "cpu_seconds": time.process_time() - started,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        rows += coverage(seed)
        for row in rows[-8:]:
            print({name: round(v, 3) if isinstance(v, float) else v for name, v in row.items()}, flush=True)
        write_results(args.output, rows, n_resamples=N_RESAMPLES, tokens=EVALUATION_TOKENS, truth_tokens=TRUTH_TOKENS)


if __name__ == "__main__":
    main()
