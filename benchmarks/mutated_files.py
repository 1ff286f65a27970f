"""What every loader makes of mutated files, and every page of hostile texts.

python benchmarks/mutated_files.py --files 180 --pages 100 --seed 0 --output benchmarks/results/mutated_files.json

Files are truncated, bit-flipped, of other shapes and dtypes, or have hostile JSON. Texts (names of models, crosscoders,
latents and concepts, tokens, labels, notes) have markup, control characters and marks that turn text around.
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
from tests.report import hostile_pages


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


def measure_page(name: str, n_pages: int, seed: int) -> dict[str, Any]:
    """One row: how many pages had which outcome."""
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for outcome, found in hostile_pages.page_outcomes(name, n_pages, seed, Path(folder)):
            counts[outcome] += 1
            if outcome in ("wrong", "crashed"):
                print(f"{name}: {outcome}: {found!r:.500}", file=sys.stderr)
    return {"page": name, "n": counts.total(), **{outcome: counts[outcome] for outcome in hostile_pages.OUTCOMES}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=100, help="pages of hostile texts per kind of page")
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
    pages = [measure_page(name, args.pages, args.seed) for name in hostile_pages.PAGES] if args.pages else []
    print(*pages, sep="\n")
    write_results(args.output, rows, totals=totals, pages=pages)


if __name__ == "__main__":
    main()
