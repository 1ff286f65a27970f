"""Rows of waits.py about whole processes: the demo against today's and beside busy processes, and the explorer."""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from wait_rows import WAITS, row
from wait_workloads import environment

FIGURES = ("fve_base", "fve_chat", "l0")
SHORT_STEPS = 125
MOST_WALL, MOST_CPU = 2.2, 1.3
EXPLORER = str(Path(__file__).with_name("explorer.py"))
N_EXPLORED = 73_728


def run_demo(checkout: Path, steps: int | None = None) -> tuple[tuple[float, float], dict[str, dict[str, float]]]:
    """CPU and wall milliseconds of the command with its own settings, and the figures that it saves."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "sae_lens_crosscoder", "demo", "--output_path", folder]
        command += [] if steps is None else ["--training_steps", str(steps)]
        variables = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "MKL_"))}
        before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(
            command, env={**variables, "PYTHONPATH": str(checkout)}, cwd=folder, check=True, capture_output=True
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        elapsed = time.perf_counter() - wall
        summary = json.loads(Path(folder, "summary.json").read_text())["crosscoders"]
    figures = {kind: {name: part[name] for name in FIGURES} for kind, part in summary.items()}
    return (cpu * 1e3, elapsed * 1e3), figures


def demo(checkouts: list[Path]) -> dict[str, Any]:
    """Run the whole command once in each checkout, and compare the figures that it saves."""
    (ours, our_figures), (theirs, their_figures) = (run_demo(checkout) for checkout in checkouts)
    differences = {
        f"{kind} {name}": abs(value - their_figures[kind][name])
        for kind, part in our_figures.items()
        for name, value in part.items()
    }
    measured = row("demo", [ours], [theirs], peer="today")
    return {**measured, "differences": differences, "figures": our_figures, "today_figures": their_figures}


@contextmanager
def busy_cores() -> Iterator[None]:
    """Keep every core busy with a process of Python that counts."""
    command = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def busy_demo(checkouts: list[Path]) -> dict[str, Any]:
    """Our short demo on an otherwise idle machine, then beside a busy process per core, with its own settings."""
    idle, figures = run_demo(checkouts[0], SHORT_STEPS)
    with busy_cores():
        busy, again = run_demo(checkouts[0], SHORT_STEPS)
    assert figures == again, "the demo's figures depend on how busy the machine is"
    cpu, wall = (after / before for after, before in zip(busy, idle, strict=True))
    met = cpu <= MOST_CPU and wall <= MOST_WALL
    measured = {
        "peer": "an idle machine",
        "wall_times": wall,
        "target": f"ratio >= {1 / MOST_CPU:.2g}, and at most {MOST_WALL} times the wall time",
        "met": met,
        "why": None if met else f"{cpu:.2f} times the CPU time, {wall:.2f} the wall time: {WAITS['demo/busy'].why}",
    }
    return {**row("demo/busy", [busy], [idle], peer="peer"), **measured}


def explorer(checkouts: list[Path]) -> dict[str, Any]:
    """The slowest latent to open, ours and today's; with the median, the build's time and the file's size."""
    sizes = ["--child", "--latents", str(N_EXPLORED), "--rounds", "1", "--visited", "150"]
    found: list[dict[str, dict[str, Any]]] = []
    for checkout in checkouts:
        alone = environment(checkout, OMP_NUM_THREADS="1")
        done = subprocess.run([sys.executable, EXPLORER, *sizes], env=alone, capture_output=True, text=True, check=True)
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("RESULT "))
        found.append({each["name"]: each for each in json.loads(line.removeprefix("RESULT "))})
    worst = [[(each["explorer/latent"]["worst_ms"],) * 2] for each in found]
    more: dict[str, Any] = {}
    for owner, each in zip(("", "today_"), found, strict=True):
        more |= {
            f"{owner}median_ms": each["explorer/latent"]["ms"],
            f"{owner}usable_ms": each["explorer/usable"]["ms"],
            f"{owner}build_cpu_s": each["explorer/build"]["cpu_s"],
            f"{owner}mib": each["explorer/size"]["mib"],
        }
    return {**row("explorer/73k", *worst, peer="today"), **more}
