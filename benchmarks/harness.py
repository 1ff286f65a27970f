"""Measurement for benchmarks: interleaved rounds, medians of ratios, two allocators, peak memory in a child process.

Timings of one machine drift; the ratio of two functions measured in turn does not. Every measurement runs in a child
process with a fixed environment, so that it does not depend on the caller's shell.
"""

import ctypes
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ALLOCATORS = {
    # glibc returns large blocks at once, so every array of a step is made of fresh pages.
    "default": {},
    "retaining": {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}
_RESULT = "RESULT "


def interleaved(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 2) -> dict[str, list[float]]:
    """Time every call in milliseconds. Each round calls all functions once, starting with a different one."""
    for function in functions.values():
        for _ in range(warm_up):
            function()
    names = list(functions)
    times: dict[str, list[float]] = {name: [] for name in names}
    gc.disable()
    for round_number in range(rounds):
        first = round_number % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            functions[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
        gc.collect()
    gc.enable()
    return times


def comparison(name: str, peer: str, ours_ms: list[float], peer_ms: list[float] | None, **more: Any) -> dict[str, Any]:
    """Build a row: both medians, and `ratio`, the median over rounds of theirs / ours (above 1: ours is faster)."""
    row = {"name": name, "peer": peer, "ours_ms": statistics.median(ours_ms), "rounds": len(ours_ms), **more}
    if peer_ms is None:
        return {**row, "peer_ms": None, "ratio": None, "status": "not measured"}
    ratio = statistics.median(theirs / ours for ours, theirs in zip(ours_ms, peer_ms, strict=True))
    return {**row, "peer_ms": statistics.median(peer_ms), "ratio": ratio, "status": "measured"}


def against_target(row: dict[str, Any], target: float | None, column: str = "ratio", at_least: bool = True) -> Any:
    """Add `target` to a row, and `met`: None without a target or a measurement."""
    value = row[column]
    met = None if target is None or value is None else (value >= target if at_least else value <= target)
    relation = None if target is None else f"{column} {'>=' if at_least else '<='} {target:g}"
    return {**row, "target": relation, "met": met}


def in_child(script: str, arguments: list[str], allocator: str = "default", threads: int = 1) -> Any:
    """Run `script --child arguments` in a process with this allocator and thread count; return its `hand_back`."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")},
        **ALLOCATORS[allocator],
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join([str(Path(script).parent.parent), os.environ.get("PYTHONPATH", "")]),
    }
    command = [sys.executable, script, "--child", *arguments]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return next(json.loads(line[len(_RESULT) :]) for line in done.stdout.splitlines() if line.startswith(_RESULT))


def hand_back(result: Any) -> None:
    """Hand a child's result to its parent."""
    print(_RESULT + json.dumps(result))


@contextmanager
def peak_memory() -> Iterator[dict[str, float]]:
    """Measure the peak memory of a block above that of the process before it, as `mib` (Linux only)."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = _status_kib("VmRSS")
    peak: dict[str, float] = {}
    yield peak
    peak["mib"] = (_status_kib("VmHWM") - before) / 1024


def _status_kib(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{field}:"))
