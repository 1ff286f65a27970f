"""Rows of waits.py about activations at rest: reading a cache, what int8 keeps, and the shuffling buffer."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from activation_path import BUFFER_TOKENS, PASSES, drain, mixed, stream
from cache_path import D_MODEL, Disk
from harness import ALLOCATORS, hand_back, in_child
from int8_figures import LEAST_EQUAL, MOST_BYTES, MOST_FVE, int8_figures
from wait_rows import WAITS, Times, row

PEER = "a float32 memory map"
CHUNK = 4096


@contextmanager
def _disks(names: tuple[str, ...]) -> Iterator[dict[str, Disk]]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a temporary folder may be in memory
        disks = {name: Disk(Path(folder, name.replace(" ", "_"))) for name in names}
        for disk in disks.values():
            disk.folder.mkdir()
        yield disks


def _times(readers: dict[str, Callable[[], object]], rounds: int) -> dict[str, Times]:
    """CPU and wall milliseconds of each, called in turn, after one call of each."""
    times: dict[str, Times] = {name: [] for name in readers}
    for round_number in range(rounds + 1):
        for name, read in readers.items():
            cpu, wall = time.process_time(), time.perf_counter()
            read()
            if round_number > 0:
                times[name].append(((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3))
    return times


def checksums(rounds: int) -> dict[str, Any]:
    """Writing a cache in bfloat16 and reading it in shuffled blocks, with checksums, beside a plain memory map."""
    names = ("bfloat16", PEER)
    with _disks(names) as disks:
        ours, plain = disks.values()
        steps = {
            "write": partial(ours.write, "bfloat16"),
            "read": partial(ours.read, "on_first_read"),
            "read unchecked": partial(ours.read, "never"),
            "write plain": plain.write_plain,
            "read plain": plain.read_plain,
        }
        times = _times(steps, rounds)

    def together(write: str, read: str) -> Times:
        return [tuple(map(sum, zip(*both, strict=True))) for both in zip(times[write], times[read], strict=True)]

    peer = together("write plain", "read plain")
    unchecked = row("cache/checksums", together("write", "read unchecked"), peer, peer="peer")
    cpu_ms = {name: statistics.median(cpu for cpu, _ in each) for name, each in times.items()}
    more = {"peer": PEER, "ratio_with_checksums_not_read": unchecked["ratio"], "cpu_ms": cpu_ms}
    return {**row("cache/checksums", together("write", "read"), peer, peer="peer"), **more}


def int8(rounds: int) -> dict[str, Any]:
    """Reading a cache in int8 beside one in bfloat16, and what its rounding changes in a diagnosis."""
    names = ("int8", "bfloat16")
    with _disks(names) as disks:
        for name, disk in disks.items():
            disk.write("int8" if name == "int8" else "bfloat16")
        times = _times({name: partial(disk.read, "on_first_read") for name, disk in disks.items()}, rounds)
    figures = int8_figures(D_MODEL)
    of_weights = min(figures["classes_equal_read"].values()) >= LEAST_EQUAL
    fve = {**figures["fve_difference_read"], **figures["fve_difference_trained"]}
    met = figures["bytes_ratio"] <= MOST_BYTES and of_weights and max(fve.values()) <= MOST_FVE
    verdicts = min(figures["verdicts_equal_read"].values())
    anew, floor = (min(figures[f"classes_equal_{kind}"].values()) for kind in ("trained", "other_order"))
    note = (
        f"a diagnosis of one crosscoder on int8 gives equal classes for all latents and equal verdicts for "
        f"{verdicts:.1%}; trained anew on int8, {anew:.1%} of the classes are equal, and {floor:.1%} of those trained "
        "anew in float32 on another order of the same tokens"
    )
    target = f"bytes at most {MOST_BYTES} of bfloat16's, classes equal for {LEAST_EQUAL:.1%}, FVE within {MOST_FVE}"
    measured = row("cache/int8", times["int8"], times["bfloat16"], peer="peer")
    return {
        **measured,
        "peer": "a cache in bfloat16",
        "target": target,
        "met": met and anew >= LEAST_EQUAL,
        "why": f"{note}: {WAITS['cache/int8'].why}",
        **figures,
    }


def buffer(rounds: int) -> dict[str, Any]:
    """The shuffling buffer beside SAELens's, under the allocator with the lower ratio."""
    measured: dict[str, dict[str, Any]] = {}
    for allocator in ALLOCATORS:
        ours, theirs = in_child(__file__, [str(rounds)], allocator)
        measured[allocator] = row("buffer/4k", ours, theirs, peer="peer")
    ratios = {allocator: each["ratio"] for allocator, each in measured.items()}
    lowest = min(measured.values(), key=lambda each: each["ratio"])
    n_tokens = PASSES * BUFFER_TOKENS
    more = {"peer": "SAELens", "ratios": ratios, "ours_us_per_token": lowest["ours_ms"] * 1e3 / n_tokens}
    return {**lowest, **more}


def _buffer_times(rounds: int) -> list[Times]:
    torch.set_num_threads(1)
    chunks = stream(CHUNK)
    times = _times({who: lambda who=who: drain(mixed(who, chunks)) for who in ("ours", "sae_lens")}, rounds)
    return list(times.values())


if __name__ == "__main__":
    import sys

    hand_back(_buffer_times(int(sys.argv[-1])))
