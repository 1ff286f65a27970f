"""Whether anything got slower or worse since a checkout: the workloads of the other benchmarks, ours beside theirs.

python benchmarks/no_worse.py --today ../wt-today --output benchmarks/results/no_worse.json

Each checkout runs in a process of its own with one thread, in turn. A row's `ratio` is the median over rounds of their
CPU time over ours, or of a planted world's figure in ours over theirs: at least 0.95 is no worse.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from results_file import COMMIT, ROOT, write_results
from unchanged_workloads import QUALITY, RESULT, SPEED
from wait_workloads import environment

LEAST = 0.95
SCRIPT = str(Path(__file__).with_name("unchanged_workloads.py"))
WHY: dict[str, str] = {}
"""The reason, for rows that are worse."""


class Process:
    """One checkout's process."""

    def __init__(self, checkout: Path) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        alone = environment(checkout, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TQDM_DISABLE="1")
        self.process = subprocess.Popen([sys.executable, SCRIPT], env=alone, text=True, **pipes)

    def run(self, name: str) -> Any:
        """CPU milliseconds, or figures by name."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith(RESULT):
                return json.loads(line.removeprefix(RESULT))
        raise RuntimeError(f"the process that measures {name!r} ended")


def row(name: str, ours: float, today: float, ratio: float, **more: Any) -> dict[str, Any]:
    """One comparison."""
    met = ratio >= LEAST
    names = {"name": name, **more, "ratio": ratio, "target": f"ratio >= {LEAST}", "met": met}
    return {**names, "ours": ours, "today": today, "why": None if met else WHY.get(name), "commit": COMMIT}


def speed(name: str, processes: list[Process], rounds: int) -> dict[str, Any]:
    """CPU times of one workload, the checkouts in turn."""
    times = [[process.run(name) for process in processes] for _ in range(rounds)]
    ours, today = (statistics.median(each) for each in zip(*times, strict=True))
    return row(name, ours, today, statistics.median(b / a for a, b in times), unit="CPU ms", rounds=rounds)


def quality(name: str, processes: list[Process]) -> list[dict[str, Any]]:
    """Figures of one planted world."""
    ours, today = (process.run(name) for process in processes)
    return [row(f"{name}: {figure}", ours[figure], today[figure], ours[figure] / today[figure]) for figure in ours]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--today", type=Path, required=True, help="the checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=[*SPEED, *QUALITY], choices=[*SPEED, *QUALITY])
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    processes = [Process(checkout) for checkout in (ROOT, args.today.resolve())]
    earlier = json.loads(args.output.read_text())["rows"] if args.output and args.output.exists() else []
    rows = {each["name"]: each for each in earlier}
    for name in args.rows:
        found = quality(name, processes) if name in QUALITY else [speed(name, processes, args.rounds)]
        rows |= {each["name"]: each for each in found}
        for each in found:
            print(json.dumps(each), flush=True)
        if args.output is not None:
            write_results(args.output, list(rows.values()))
    for process in processes:
        process.process.communicate()


if __name__ == "__main__":
    main()
