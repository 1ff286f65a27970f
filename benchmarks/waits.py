"""Where people wait, against an unmodified checkout: the demo, harvesting, decoupled pairs, a diagnosis, small steps.

python benchmarks/waits.py --today ../wt-today --output benchmarks/results/waits.json

Both checkouts run in a process of their own with one thread; each round calls both in turn and compares their results.
Times are CPU times, which a busy machine changes least, with wall times beside them.
"""

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from results_file import ROOT, write_results

SCRIPT = str(Path(__file__).resolve())
TITLES = {
    "demo": "the command demo, whole process (a twentieth of its steps)",
    "harvest": "activations of the built-in pair, 4,096 tokens",
    "decoupled_pairs": "decoupled pairs among 16,384 latents, two thirds one-sided",
    "diagnose": "diagnosis of 16,384 latents on 2,048 tokens",
    "step/tiny": "training step, 2 x 32 wide, 512 latents, k 16, batch 256",
}
TARGETS = {"demo": 2.0, "harvest": 2.0, "decoupled_pairs": 4.0, "diagnose": 2.7, "step/tiny": 3.0}
WHY = {
    "demo": "imports and the report take the same time as before, and weigh more in a short demo",
    "harvest": "what remains is matrix products, attention, and layer norms in their own order of operations",
    "diagnose": "the rest is the tokens, the ratios of 400 resamples, and a verdict per latent in Python",
    "step/tiny": "operations on few numbers are bound by their dispatch; a dense step takes twice as long as this one",
}
N_LATENTS = 16_384


def harvest() -> Callable[[], bytes]:
    import torch

    import sae_lens_crosscoder as slc

    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    tokens = torch.randint(0, 200, (64, 64), generator=torch.Generator().manual_seed(0))

    def run() -> bytes:
        with torch.no_grad():
            return pair.activations(tokens, "blocks.2.hook_resid_post").numpy().tobytes()

    return run


def _crosscoder() -> Any:
    import torch

    import sae_lens_crosscoder as slc

    torch.manual_seed(0)
    crosscoder = slc.JumpReLUCrosscoder(slc.JumpReLUCrosscoderConfig(d_model=64, d_sae=N_LATENTS))
    with torch.no_grad():
        for name, weights in crosscoder.named_parameters():
            weights.normal_() if name != "threshold" else weights.fill_(28.0)
    return crosscoder


def diagnose() -> Callable[[], bytes]:
    import torch

    import sae_lens_crosscoder as slc

    crosscoder, x = _crosscoder(), torch.randn(2048, 128)

    def run() -> bytes:
        table = slc.diagnose(crosscoder, slc.EvalData(activations=x, max_norm_ratio=None)).latents
        return table[["nu_error_low", "nu_reconstruction_high"]].round(9).to_csv().encode() + b"".join(
            table[name].astype(str).str.cat(sep=" ").encode() for name in ("label", "verdict")
        )

    return run


def decoupled_pairs() -> Callable[[], bytes]:
    import numpy as np
    import pandas as pd

    import sae_lens_crosscoder as slc

    crosscoder = _crosscoder()
    labels = np.array(["chat_only", "base_only", "shared"])[np.arange(N_LATENTS) % 3]
    table = pd.DataFrame({"label": labels, "dead": False})
    return lambda: slc.analysis.decoupled_pairs(crosscoder, table, 0.5)[["chat_latent", "isolated"]].to_csv().encode()


WORKLOADS = {"harvest": harvest, "decoupled_pairs": decoupled_pairs, "diagnose": diagnose}


def child() -> None:
    """Read names of workloads from standard input; answer with CPU and wall milliseconds and a digest of the result."""
    ready: dict[str, Callable[[], bytes]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready[name] = WORKLOADS[name]()
            ready[name]()
        cpu, wall = time.process_time(), time.perf_counter()
        result = ready[name]()
        times = [(time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3]
        print(json.dumps([*times, hashlib.sha256(result).hexdigest()]), flush=True)


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Process:
    """One checkout's process."""

    def __init__(self, checkout: Path) -> None:
        command = [sys.executable, SCRIPT, "--child"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=_environment(checkout), text=True, **pipes)

    def run(self, name: str) -> tuple[float, float, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        cpu, wall, digest = json.loads(self.process.stdout.readline())
        return cpu, wall, digest


def row(name: str, ours: list[tuple[float, float]], theirs: list[tuple[float, float]], peer: str) -> dict[str, Any]:
    """A row; `ratio` is the median over rounds of their CPU time over ours."""
    ratio = statistics.median(b[0] / a[0] for a, b in zip(ours, theirs, strict=True))
    met = ratio >= TARGETS[name]
    medians = [[statistics.median(times) for times in zip(*rounds, strict=True)] for rounds in (ours, theirs)]
    return {
        "name": name,
        "title": TITLES[name],
        "ours_ms": medians[0][0],
        f"{peer}_ms": medians[1][0],
        "ours_wall_ms": medians[0][1],
        f"{peer}_wall_ms": medians[1][1],
        "rounds": len(ours),
        "ratio": ratio,
        "target": f"ratio >= {TARGETS[name]:g}",
        "met": met,
        "why": None if met else WHY.get(name),
    }


def compared(name: str, processes: list[Process], rounds: int) -> dict[str, Any]:
    times: list[list[tuple[float, float]]] = [[], []]
    for _ in range(rounds):
        answers = [process.run(name) for process in processes]
        assert answers[0][2] == answers[1][2], f"{name}: the checkouts give different results"
        for kept, (cpu, wall, _digest) in zip(times, answers, strict=True):
            kept.append((cpu, wall))
    return row(name, *times, peer="today")


def demo(checkouts: list[Path]) -> dict[str, Any]:
    """Run the command once in each checkout; the figures that it saves must be the same."""
    times: list[list[tuple[float, float]]] = []
    saved: list[Any] = []
    for checkout in checkouts:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "sae_lens_crosscoder", "demo", "--output_path", folder]
            before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = [*command, "--training_steps", "125"]
            subprocess.run(done, env=_environment(checkout), cwd=folder, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times.append([(cpu * 1e3, (time.perf_counter() - wall) * 1e3)])
            summary = json.loads(Path(folder, "summary.json").read_text())["crosscoders"]
            saved.append([{name: part[name] for name in ("fve_base", "fve_chat", "l0")} for part in summary.values()])
    assert saved[0] == saved[1], "the demos' figures differ"
    return row("demo", *times, peer="today")


def tiny_step(rounds: int) -> dict[str, Any]:
    """Our step against SAELens's, in this process."""
    import torch
    from step_peers import activations, sae_lens_step, stepping
    from training_step import SIZES, exactness, our_trainer

    torch.set_num_threads(1)
    size = SIZES["step/tiny"]
    batches = activations(size)
    trainer = our_trainer(size, batches, screening="float32")
    steps = [stepping(trainer, size, batches), sae_lens_step(size, batches)]
    times: list[list[tuple[float, float]]] = [[], []]
    for step, kept in [*zip(steps, times, strict=True)] * (rounds + 1):  # the first round warms up
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(50):
            step()
        kept.append(((time.process_time() - cpu) * 20, (time.perf_counter() - wall) * 20))
    error = exactness(trainer, size, batches[0])
    return {**row("step/tiny", times[0][1:], times[1][1:], peer="peer"), "peer": "SAELens", **error}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--today", type=Path, help="an unmodified checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=[*WORKLOADS, "step/tiny", "demo"], choices=list(TITLES))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child()
    checkouts = [ROOT, args.today.resolve()]
    processes = [Process(checkout) for checkout in checkouts]
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "step/tiny": lambda: tiny_step(args.rounds),
        "demo": lambda: demo(checkouts),
    }
    rows: list[dict[str, Any]] = []
    for name in args.rows:
        rows.append(others[name]() if name in others else compared(name, processes, args.rounds))
        print(json.dumps(rows[-1]), flush=True)
        if args.output is not None:
            write_results(args.output, rows)
    for process in processes:
        process.process.communicate()


if __name__ == "__main__":
    main()
