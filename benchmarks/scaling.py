"""Seconds of real training steps beside those that the cost model predicts from other steps: sizes, processes, layouts.

python benchmarks/scaling.py --output benchmarks/results/scaling.json

In every round one step size calibrates the model, in one process on one core. It then predicts other sizes, and steps
of two gloo processes on a core each, whose link is measured by sums of its own. No point that is predicted is
calibrated on. That two processes share the memory's bandwidth, and caches, is part of what the model leaves out.
"""

import argparse
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from distributed import on_processes
from results_file import write_results
from torch import Tensor

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.collectives import ONE_PROCESS
from sae_lens_crosscoder.planning.calibration import measured_hardware
from sae_lens_crosscoder.planning.scaling import ASSUMPTIONS, Hardware, StepTime, step_time
from sae_lens_crosscoder.training.distributed.latent_shards import ShardedTrainer
from sae_lens_crosscoder.training.distributed.process_group import ProcessGrid

K = 32
WARM_UP = 5  # steps, in which the screening bound settles
LINK_BYTES, N_SUMS = 16_000_000, 20
CORES = sorted(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Point:
    """A size of step, on random tokens for two models of equal width."""

    d_model: int
    d_sae: int
    batch: int

    def crosscoder(self) -> slc.BatchTopKCrosscoderTrainingConfig:
        return slc.BatchTopKCrosscoderTrainingConfig(d_model=self.d_model, d_sae=self.d_sae, k=K)

    def config(self) -> slc.CrosscoderRunnerConfig:
        return slc.CrosscoderRunnerConfig(
            sae=self.crosscoder(),
            train_batch_size_tokens=self.batch,
            training_tokens=1000 * self.batch,
            lr_warm_up_steps=0,
            checkpoint_path=None,
        )


CALIBRATION = Point(128, 4096, 512)
POINTS = [
    Point(64, 2048, 256),
    Point(64, 8192, 512),
    Point(128, 4096, 2048),
    Point(128, 16_384, 512),
    Point(256, 4096, 512),
    Point(256, 8192, 1024),
]
SMOKE_CALIBRATION, SMOKE_POINTS = Point(16, 256, 64), [Point(16, 512, 64), Point(32, 256, 64)]
LAYOUTS = {"data 2 x latents 1": 1, "data 1 x latents 2": 2}


def step_seconds(point: Point, steps: int, n_latents: int = 1) -> float:
    """The median time between a run's requests for its batches, whose processes are those that this is called in."""
    ranks = ProcessGrid(n_latents, "cpu") if dist.is_initialized() else ONE_PROCESS
    torch.manual_seed(0)
    whole = slc.BatchTopKTrainingCrosscoder(point.crosscoder())
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=(WARM_UP + steps) * point.batch,
        train_batch_size_samples=point.batch,
        lr=1e-4,
        lr_warm_up_steps=0,
        dead_feature_window=10**6,
        log_frequency=10**6,
    )
    asked: list[float] = []

    def batches() -> Iterator[Tensor]:
        tokens = [torch.randn(point.batch // ranks.n, 2 * point.d_model) for _ in range(3)]
        while True:
            asked.append(time.perf_counter())
            yield tokens[len(asked) % 3]

    (ShardedTrainer if ranks.n > 1 else slc.CrosscoderTrainer)(cfg, ranks.part_of(whole), batches()).fit()
    return statistics.median(later - earlier for earlier, later in pairwise(asked[WARM_UP:]))


def link() -> dict[str, float]:
    """Latency and bandwidth between the processes of a group, from sums of one number and of many."""

    def median(tensor: Tensor) -> float:
        seconds: list[float] = []
        for _ in range(N_SUMS):
            start = time.perf_counter()
            dist.all_reduce(tensor)
            seconds.append(time.perf_counter() - start)
        return statistics.median(seconds)

    latency = median(torch.zeros(1))
    n = dist.get_world_size()
    sent = 2 * (n - 1) / n * LINK_BYTES
    return {"latency": latency, "link_bandwidth": sent / (median(torch.zeros(LINK_BYTES // 4)) - latency)}


def one_of_two(points: list[Point], steps: int) -> dict[str, Any]:
    """The link, and seconds of a step by layout, for every point."""
    os.sched_setaffinity(0, {CORES[dist.get_rank()]})
    seconds = {name: [step_seconds(point, steps, n) for point in points] for name, n in LAYOUTS.items()}
    return {"link": link(), "seconds": seconds}


def measured_round(calibration: Point, points: list[Point], steps: int) -> tuple[Hardware, list[dict[str, Any]]]:
    """The hardware as calibrated, and a row for every layout and point."""
    alone = measured_hardware(calibration.crosscoder(), calibration.config(), {})
    seconds = {"one process": [step_seconds(point, steps) for point in points]}
    two = on_processes(2, one_of_two, points, steps)
    hardware = replace(alone, **two["link"])
    rows: list[dict[str, Any]] = []
    for layout, measured in (seconds | two["seconds"]).items():
        n_latents = LAYOUTS.get(layout, 1)
        n_data = 1 if layout == "one process" else 2 // n_latents
        for point, found in zip(points, measured, strict=True):
            predicted = step_time(point.crosscoder(), point.batch, hardware, n_data, n_latents)
            rows.append({"layout": layout, **asdict(point), "measured": found, "predicted": predicted})
    return hardware, rows


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Of one layout and point: medians over rounds, of which `ratio` is predicted over measured."""
    predicted = [one["predicted"] for one in rounds]
    parts = {name: statistics.median(1e3 * getattr(time, name) for time in predicted) for name in StepTime._fields}
    return {
        **{name: value for name, value in rounds[0].items() if name not in ("measured", "predicted")},
        "measured_ms": statistics.median(1e3 * one["measured"] for one in rounds),
        "predicted_ms": statistics.median(1e3 * time.seconds for time in predicted),
        "ratio": statistics.median(one["predicted"].seconds / one["measured"] for one in rounds),
        "predicted_parts_ms": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="that are measured at every point, in every round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--smoke", action="store_true", help="sizes that only show that this runs")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    if len(CORES) < 2:
        raise ValueError("This process may use one core, but two processes are measured on a core each: see taskset.")
    torch.set_num_threads(1)
    os.sched_setaffinity(0, {CORES[0]})
    calibration, points = (SMOKE_CALIBRATION, SMOKE_POINTS) if args.smoke else (CALIBRATION, POINTS)
    hardware: list[dict[str, Any]] = []
    rounds: list[list[dict[str, Any]]] = []
    for _ in range(args.rounds):
        found, measured = measured_round(calibration, points, args.steps)
        hardware.append(asdict(found))
        rounds.append(measured)
        rows = [summary(list(same)) for same in zip(*rounds, strict=True)]
        for row in rows:
            print({name: value for name, value in row.items() if name != "predicted_parts_ms"}, flush=True)
        extra = {"calibration": asdict(calibration), "hardware": hardware, "assumptions": ASSUMPTIONS}
        write_results(args.output, rows, k=K, steps=args.steps, **extra)


if __name__ == "__main__":
    main()
