"""Where people wait, against an unmodified checkout and against peers: commands, harvests, steps, caches, wide latents.

python benchmarks/waits.py --today ../wt-today --output benchmarks/results/waits.json

With --rows, the other rows of the output stay as they are; each row names the commit that it was measured at.
Both checkouts run in a process of their own with one thread; each round calls both in turn and compares their results.
Times are CPU times, which a busy machine changes least, with wall times beside them.
"""

import argparse
import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from results_file import ROOT, write_results
from wait_commands import busy_demo, demo, explorer
from wait_rows import WAITS, row
from wait_workloads import WORKLOADS, compared

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as our commands set it: idle threads would count as work


def peer_row(name: str, rounds: int, dictionary_learning: str | None) -> dict[str, Any]:
    """A row beside another library, in this process."""
    import wait_harvests
    import waits_peers

    kind, _, peer = name.partition("/")
    match kind:
        case "step":
            times = waits_peers.tiny_step(rounds) if peer == "tiny" else waits_peers.wide_step(rounds)
        case "pairs":
            times = waits_peers.wide_pairs(rounds)
        case "harvest":
            architecture, _, host = peer.partition("/")
            times = wait_harvests.harvest(architecture, rounds, "HookedTransformer" if host else "TransformerBridge")
        case _:
            times = waits_peers.whole_training(max(1, rounds // 7), dictionary_learning)[peer]
    ours, theirs, more = times
    return {**row(name, ours, theirs, peer="peer"), **more}


def cache_row(name: str, rounds: int) -> dict[str, Any]:
    """A row about caches or the shuffling buffer, whose files lie in the current folder meanwhile."""
    import wait_caches

    match name:
        case "buffer/4k":
            return wait_caches.buffer(rounds)
        case "cache/checksums":
            return wait_caches.checksums(rounds)
        case _:
            return wait_caches.int8(rounds)


def _earlier_rows(output: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run, with the commit that they were measured at."""
    if output is None or not output.exists():
        return {}
    document = json.loads(output.read_text())
    return {each["name"]: {"commit": document["commit"], **each} for each in document["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--today", type=Path, required=True, help="an unmodified checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=list(WAITS), choices=list(WAITS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--dictionary-learning", metavar="CHECKOUT")
    args = parser.parse_args()
    checkouts = [ROOT, args.today.resolve()]
    measure: dict[str, Callable[[], dict[str, Any]]] = {
        "demo": partial(demo, checkouts),
        "demo/busy": partial(busy_demo, checkouts),
        "explorer/73k": partial(explorer, checkouts),
    }
    measure |= {name: partial(compared, name, checkouts, args.rounds) for name in WORKLOADS}
    measure |= {name: partial(cache_row, name, args.rounds) for name in ("buffer/4k", "cache/checksums", "cache/int8")}
    rows = _earlier_rows(args.output)
    for name in args.rows:
        rows[name] = measure.get(name, partial(peer_row, name, args.rounds, args.dictionary_learning))()
        print(json.dumps(rows[name]), flush=True)
        if args.output is not None:
            write_results(args.output, [rows[name] for name in WAITS if name in rows])


if __name__ == "__main__":
    main()
