"""Measures an explorer of many latents: time until it is usable, time per latent, and size.

python benchmarks/explorer.py --output benchmarks/results/explorer.json

A page of 10,000 made-up latents with everything that it can show, in headless Chromium, from disk. Rows:

- `explorer/usable`: from the start of the navigation until figures and table are drawn
- `explorer/filter`: one more letter in the search
- `explorer/latent`: from the key `j` until the next latent's page is laid out, over latents not visited before
- `explorer/build`: CPU time of writing the page
- `explorer/size`: bytes per latent
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from harness import against_target, hand_back, in_child
from results_file import write_results

TARGETS_MS = {"explorer/usable": 1000, "explorer/filter": 100, "explorer/latent": 20}
TARGET_BYTES = 3500
"""Per latent, as a page of 12,000 in 40 MB has."""
SWEEP = """(async () => {
  const times = [];
  for (let n = 0; n < %d; n++) {
    const before = document.body.dataset.shown;
    const start = performance.now();
    document.body.dispatchEvent(new KeyboardEvent("keydown", { key: "j", bubbles: true }));
    while (document.body.dataset.shown === before) await new Promise((next) => {
      const { port1, port2 } = new MessageChannel();  // browsers delay nested timers, not messages
      port2.onmessage = next;
      port1.postMessage(null);
    });
    document.body.getBoundingClientRect();
    times.push(performance.now() - start);
  }
  return times;
})()"""
SEARCH = """(() => {
  const search = document.getElementById("search");
  const times = [];
  for (const text of ["w", "w1", "w17", "w17 ", "w17 w"]) {
    search.value = text;
    const start = performance.now();
    search.dispatchEvent(new Event("input"));
    document.body.getBoundingClientRect();
    times.push(performance.now() - start);
  }
  return times;
})()"""


def measure(n_latents: int, rounds: int, n_visited: int) -> list[dict[str, Any]]:
    from sae_lens_crosscoder.report import write_explorer
    from tests.browser import Browser
    from tests.report.explorations import make_exploration

    times: dict[str, list[float]] = {name: [] for name in TARGETS_MS}
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"n_top": 10, "n_quantiles": 5, "n_per_quantile": 3}
        explorations = {"made up": make_exploration(Path(folder), n_latents, **sizes)}
        cpu = time.process_time()
        path = write_explorer(explorations, Path(folder, "explorer.html"))
        build = {"name": "explorer/build", "cpu_s": time.process_time() - cpu}
        for _ in range(rounds):
            with Browser() as browser:
                browser.open(path.as_uri())
                marks = browser.evaluate("performance.getEntriesByType('mark').map((mark) => mark.startTime)")
                times["explorer/usable"].append(marks[0])
                times["explorer/filter"] += browser.evaluate(SEARCH)
                browser.open(f"{path.as_uri()}#sort=latent&latent=0")
                times["explorer/latent"] += browser.evaluate(SWEEP % n_visited)
                assert browser.errors == []
        n_bytes = path.stat().st_size
    rows = [
        against_target(
            {"name": name, "ms": statistics.median(each), "worst_ms": max(each)}, TARGETS_MS[name], "ms", False
        )
        for name, each in times.items()
    ]
    size = {"name": "explorer/size", "mib": n_bytes / 2**20, "bytes_per_latent": n_bytes / n_latents}
    return [*rows, against_target(build, None, "cpu_s"), against_target(size, TARGET_BYTES, "bytes_per_latent", False)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latents", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5, help="fresh browsers")
    parser.add_argument("--visited", type=int, default=150, help="latents in a row, per browser")
    parser.add_argument("--output", type=Path, default=Path("explorer.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        hand_back(measure(args.latents, args.rounds, args.visited))
        return
    sizes = ["--latents", str(args.latents), "--rounds", str(args.rounds), "--visited", str(args.visited)]
    rows = in_child(__file__, sizes)
    write_results(args.output, rows, latents=args.latents, rounds=args.rounds, visited=args.visited)
    for row in rows:
        print(row, flush=True)


if __name__ == "__main__":
    main()
