"""Every kind of write beside every kind of fault: nothing that was complete is lost, nothing wrong is read.

python benchmarks/fault_cases.py --runs 20 --seed 0 --output benchmarks/results/fault_cases.json

A fault strikes a copy of this process (fork) at a random change of files, or in the middle of a file. Afterwards what
is on disk must be what was there before, what was to be written, or refused by a ValueError; and the same call, made
again without the fault, must end with the files of a call that nothing struck. Full and read-only disks are real ones:
a small tmpfs, which only root may mount; without root these cases are refused (leave them out with --faults).

Faults: killed (SIGKILL before a change of files, or SIGXFSZ within a file), full disk, read-only disk, two at once
(the same call twice, or two versions, in one folder), clock set back (by a day, between two writes), changed inputs
(a cache of other weights, tokens, mask, hook or precision), a rank killed (in each phase of training of two ranks),
and a worker killed (one of two workers that write one cache).
"""

import argparse
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from fault_processes import CASES, measure_case
from fault_works import Work, Works
from results_file import ROOT, write_results

sys.path.insert(0, str(ROOT))
from tests.killing import at_change, in_child

DISK_MIB, DAY = 64, 86400 * 10**9
OUTCOMES = ("as before", "written", "refused", "resumed", "wrong", "lost")


def digest(work: Work, folder: Path) -> str:
    """What is read: a digest, `refused`, or `wrong`."""
    try:
        return work.read(folder)
    except ValueError:
        return "refused"
    except Exception as error:  # neither the work's digest nor a refusal by name
        print(f"{work.name}: {error!r:.300}", file=sys.stderr)
        return "wrong"


def quietly(function: Callable[[], Any]) -> int:
    """The exit code of a copy of this process; its messages are not shown."""

    def silent() -> None:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)
        os.dup2(null, 1)
        function()

    return in_child(silent)


def n_changes(work: Work, folder: Path, version: int) -> int:
    """How many changes of files the work makes."""
    counted = folder.parent / "changes"
    changes: list[None] = []

    def count() -> None:
        at_change(10**9, folder, lambda: work.write(folder, version), lambda: None, changes)
        counted.write_text(str(len(changes)))

    assert quietly(count) == 0, f"{work.name} fails without a fault"
    return int(counted.read_text())


def judged(work: Work, folder: Path, before: str, unbroken: str, version: int) -> str:
    """What a struck call left, and whether the next one makes of it what an unbroken one does."""
    left = digest(work, folder)
    if left == "wrong":
        return "wrong"
    if quietly(lambda: work.write(folder, version)) != 0 or digest(work, folder) != unbroken:
        print(f"{work.name}: {digest(work, folder)} after another call, not {unbroken}", file=sys.stderr)
        return "lost"
    return {before: "as before", unbroken: "written", "refused": "refused"}.get(left, "resumed")


def kill(work: Work, folder: Path, version: int, n: int, rng: random.Random) -> bool:
    """Kill the work before a change of files, or every second time in the middle of a file."""
    if rng.random() < 0.5:
        at = rng.randrange(n)
        return quietly(lambda: at_change(at, folder, lambda: work.write(folder, version), kill_self)) < 0
    sizes = [path.stat().st_size for path in folder.parent.joinpath("unbroken").rglob("*") if path.is_file()]
    limit = rng.randrange(1, max(2, rng.choice(sizes)))

    def limited() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        work.write(folder, version)

    return quietly(limited) < 0


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def fill(work: Work, folder: Path, version: int, n: int, rng: random.Random) -> bool:
    """Leave the disk too little space for what the work writes."""
    unbroken = folder.parent / "unbroken"
    size = sum(path.stat().st_size for path in unbroken.rglob("*") if path.is_file())
    free = rng.randrange(max(4096, size))
    ballast = folder.parent / "ballast"
    with ballast.open("wb") as file, contextlib.suppress(OSError):
        file.write(bytes(max(0, shutil.disk_usage(folder.parent).free - free)))
    code = quietly(lambda: work.write(folder, version))
    ballast.unlink()
    return code == 1


def protect(work: Work, folder: Path, version: int, n: int, rng: random.Random) -> bool:
    """Make the disk read-only before a change of files."""
    at = rng.randrange(n)
    remount = lambda how: subprocess.run(["mount", "-o", f"remount,{how}", folder.parent], capture_output=True)  # noqa: E731
    code = quietly(lambda: at_change(at, folder, lambda: work.write(folder, version), lambda: remount("ro")))
    remount("rw")
    return code == 1


def run_twice(work: Work, folder: Path, version: int, n: int, rng: random.Random) -> bool:
    """Begin the same work a second time while it runs."""
    first = os.fork()
    if first == 0:
        os._exit(quietly(lambda: work.write(folder, version)))
    time.sleep(0.3 * rng.random())
    quietly(lambda: work.write(folder, version))
    os.waitpid(first, 0)
    return True


def set_clock_back(work: Work, folder: Path, version: int, n: int, rng: random.Random) -> bool:
    """Kill the work, as `kill`; to what it wrote until a moment before, the clock then was a day ahead."""
    moment = rng.randrange(n)

    def age() -> None:
        for path in folder.rglob("*"):
            os.utime(path, ns=2 * (path.stat().st_mtime_ns + DAY,))

    def write() -> None:
        at_change(rng.randrange(moment, n), folder, lambda: work.write(folder, version), kill_self)

    return quietly(lambda: at_change(moment, folder, write, age)) < 0


FAULTS: dict[str, Callable[[Work, Path, int, int, random.Random], bool]] = {
    "killed": kill,
    "full disk": fill,
    "read-only disk": protect,
    "two at once": run_twice,
    "clock set back": set_clock_back,
}


@contextmanager
def disk(real: bool) -> Generator[Path]:
    """A folder; a small disk of its own if it shall be filled or protected."""
    with tempfile.TemporaryDirectory() as folder:
        if not real:
            yield Path(folder)
            return
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", folder]
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise SystemExit(
                f"A small disk cannot be mounted ({done.stderr.strip()}): be root, or choose other --faults."
            )
        try:
            yield Path(folder)
        finally:
            subprocess.run(["umount", folder], check=True)


def measure(fault: str, work: Work, n_runs: int, rng: random.Random) -> dict[str, Any]:
    """A row: how many struck calls left what."""
    counts: Counter[str] = Counter()
    with disk(fault in ("full disk", "read-only disk")) as base:
        unbroken_folder = base / "unbroken"
        unbroken_folder.mkdir()
        if work.over is not None:
            assert quietly(lambda: work.write(unbroken_folder, work.over)) == 0
        before = digest(work, unbroken_folder)
        n = n_changes(work, unbroken_folder, 1 if work.over is not None else 0)
        unbroken = digest(work, unbroken_folder)
        folder, version = base / "struck", 0 if work.over is None else 1
        for _ in range(3 * n_runs):
            folder.mkdir()
            if work.over is not None:
                quietly(lambda: work.write(folder, work.over))
            if FAULTS[fault](work, folder, version, n, rng):
                counts[judged(work, folder, before, unbroken, version)] += 1
            shutil.rmtree(folder)
            if counts.total() == n_runs:
                break
    row = {"fault": fault, "work": work.name, "n": counts.total(), **{name: counts[name] for name in OUTCOMES}}
    print(row, flush=True)
    return row


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--runs", type=int, default=20, help="struck calls per kind of fault and of writing")
    flags.add_argument("--faults", nargs="+", default=[*FAULTS, *CASES], choices=[*FAULTS, *CASES])
    flags.add_argument("--works", nargs="+", help="names of kinds of writing; all by default")
    flags.add_argument("--seed", type=int, default=0)
    flags.add_argument("--output", required=True)
    args = flags.parse_args()
    torch.set_num_threads(1)
    rng = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        everything = Works(Path(folder))
        works = [work for work in everything.all() if args.works is None or work.name in args.works]
        rows = [measure(fault, work, args.runs, rng) for fault in args.faults if fault in FAULTS for work in works]
        for case in (name for name in args.faults if name in CASES):
            with tempfile.TemporaryDirectory() as cases:
                counts = measure_case(case, everything, args.runs, Path(cases), rng)
            rows.append({**dict.fromkeys(OUTCOMES, 0), **counts})
            print(rows[-1], flush=True)
    totals = {name: sum(row[name] for row in rows) for name in ("n", *OUTCOMES)}
    print(totals)
    write_results(args.output, rows, totals=totals)


if __name__ == "__main__":
    main()
