"""Joins results files that the same command wrote for different seeds, as if one process had measured them all.

python benchmarks/join_results.py part_0.json part_1.json --output benchmarks/results/planted_hard.json
"""

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results_file import ROOT

_SEEDS = re.compile(r"--seeds(?: \d+)+")
_OUTPUT = re.compile(r"--output \S+")


def joined(parts: Sequence[dict[str, Any]], output: str) -> dict[str, Any]:
    """Return one document with the rows and concepts of all parts, by seed, and the command that measures them.

    Raises:
        ValueError: for parts that differ in anything but seeds, output and rows, or that share a seed.
    """
    commands, shared = zip(*(_split(part) for part in parts), strict=True)
    if any(other != shared[0] for other in shared[1:]):
        raise ValueError("The parts differ in command, commit, versions or settings. Measure them in the same way.")
    seeds = [row["seed"] for part in parts for row in part["rows"]]
    distinct = [set(row["seed"] for row in part["rows"]) for part in parts]
    if sum(map(len, distinct)) != len(set(seeds)):
        raise ValueError(f"A seed is in more than one part: {distinct}. Pass every seed once.")
    rows = sorted((row for part in parts for row in part["rows"]), key=lambda row: row["seed"])
    measured = " ".join(str(seed) for seed in sorted(set(seeds)))
    command = _OUTPUT.sub(f"--output {output}", _SEEDS.sub(f"--seeds {measured}", commands[0]))
    whole = {**parts[0], "command": command, "rows": rows}
    if "concepts" in whole:  # by cell and seed
        whole["concepts"] = {name: shown for part in parts for name, shown in part["concepts"].items()}
    return whole


def _split(part: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the command of a part, and everything that its peers must have too."""
    shared = {name: value for name, value in part.items() if name not in ("command", "concepts", "rows")}
    shared["command"] = _OUTPUT.sub("", _SEEDS.sub("", part["command"]))
    return part["command"], shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    output = args.output.resolve()
    shown = output.relative_to(ROOT).as_posix() if output.is_relative_to(ROOT) else output.as_posix()
    document = joined([json.loads(path.read_text()) for path in args.parts], shown)
    output.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
