"""What every loader makes of mutated files: truncated, bit-flipped, of other shapes and dtypes, with hostile JSON.

python benchmarks/mutated_files.py --files 500 --seed 0 --output benchmarks/results/mutated_files.json
"""

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from results_file import ROOT, write_results

sys.path.insert(0, str(ROOT))  # the fuzzer is the one that the tests run in a small form
from tests.loading.mutated_files import LOADERS, OUTCOMES, outcomes


def measure(name: str, n_files: int, seed: int) -> list[dict[str, Any]]:
    """A row per mutation, with how many files had which outcome; a word to stderr for each that is not as it should."""
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind, outcome, found in outcomes(name, n_files, seed, Path(folder)):
            counts.setdefault(kind, Counter())[outcome] += 1
            if outcome in ("wrong", "crashed"):
                print(f"{name}, {kind}: {outcome}: {found!r:.500}", file=sys.stderr)
    return [
        {"loader": name, "mutation": kind, "n": found.total(), **{outcome: found[outcome] for outcome in OUTCOMES}}
        for kind, found in counts.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=500, help="mutated files per loader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--loaders", nargs="+", default=list(LOADERS), choices=list(LOADERS))
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for name in args.loaders:
        rows += measure(name, args.files, args.seed)
        total = Counter({outcome: sum(row[outcome] for row in rows if row["loader"] == name) for outcome in OUTCOMES})
        print(f"{name}: {dict(total)}")
    totals = {outcome: sum(row[outcome] for row in rows) for outcome in OUTCOMES}
    write_results(args.output, rows, totals=totals)


if __name__ == "__main__":
    main()
