"""Measures the server under many clients at once: requests lost, wrong answers, waits, and memory from round to round.

python benchmarks/serve.py --crosscoder demo --output benchmarks/results/serve.json

`demo` is what `sae-lens-crosscoder demo` writes. In every round each client sends one request at the same time as all
others. Answers are compared with those to the same requests one at a time. Some more clients leave while they wait.
"""

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from results_file import write_results

NAMES = ("anna", "ben", "clara", "david", "emma", "felix", "grace", "hugo", "iris", "jonas")


class Server:
    """The command `serve` in a process of its own."""

    def __init__(self, crosscoder: str) -> None:
        command = [sys.executable, "-m", "sae_lens_crosscoder", "serve", crosscoder, "--port", "0"]
        self._process = subprocess.Popen(
            [*command, "--n-held-out-rows", "16"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self._process.stdout is not None
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", self._process.stdout.readline())
        assert found is not None, "the server did not start"
        self._port, self._headers = int(found[1]), {"Authorization": f"Bearer {found[2]}"}

    def send(self, route: str, body: dict[str, Any]) -> HTTPConnection:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=300)
        connection.request("POST", f"/api/{route}", json.dumps(body), self._headers)
        return connection

    def ask(self, request: tuple[str, dict[str, Any]]) -> dict[str, Any]:
        """The last line, the largest position that was told, and the time it took; no line if the request is lost."""
        start = time.monotonic()
        try:
            connection = self.send(*request)
            lines = [json.loads(line) for line in connection.getresponse().read().splitlines()]
            connection.close()
        except OSError:
            return {"result": None, "position": 0, "seconds": time.monotonic() - start}
        positions = [line["position"] for line in lines if line.get("event") == "queued"]
        return {"result": lines[-1], "position": max(positions, default=0), "seconds": time.monotonic() - start}

    def memory_mb(self) -> float:
        """Resident memory of the server."""
        status = Path(f"/proc/{self._process.pid}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def stop(self) -> int:
        """Stop it as Ctrl-C does, and return its exit code."""
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout=60)


def requests(n: int) -> list[tuple[str, dict[str, Any]]]:
    """Latents, answers, and answers with an edit, in turn."""
    asked: list[tuple[str, dict[str, Any]]] = []
    for i in range(n):
        body: dict[str, Any] = {"messages": [{"role": "user", "content": f"so what does {NAMES[i % 10]} eat ?"}]}
        edits = [{"latents": [*range(i, i + 40)], "how": "ablate"}] if i % 3 == 2 else []
        asked.append(("latents", body) if i % 3 == 0 else ("answers", {**body, "edits": edits, "max_new_tokens": 8}))
    return asked


def round_row(
    server: Server, asked: list[tuple[str, dict[str, Any]]], expected: list[Any], n_leave: int
) -> dict[str, Any]:
    """One round: all clients at once, and some that leave."""
    with ThreadPoolExecutor(len(asked)) as clients:
        start = time.monotonic()
        pending = [clients.submit(server.ask, request) for request in asked]
        leaving = [server.send("answers", asked[1][1]) for _ in range(n_leave)]
        for connection in leaving:
            connection.close()
        got = [each.result() for each in pending]
    results, seconds = [each["result"] for each in got], [each["seconds"] for each in got]
    return {
        "n_clients": len(asked),
        "n_that_left": n_leave,
        "n_lost": sum(result is None or result.get("event") not in ("latents", "answers") for result in results),
        "n_wrong": sum(result != right for result, right in zip(results, expected, strict=True)),
        "largest_position": max(each["position"] for each in got),
        "median_seconds": statistics.median(seconds),
        "slowest_seconds": max(seconds),
        "seconds": time.monotonic() - start,
        "memory_mb": server.memory_mb(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--crosscoder", default="demo")
    parser.add_argument("--n-clients", type=int, default=50)
    parser.add_argument("--n-rounds", type=int, default=5)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    server = Server(args.crosscoder)
    asked = requests(args.n_clients)
    expected = [server.ask(request) for request in asked]
    alone = statistics.median(each["seconds"] for each in expected)
    rows: list[dict[str, Any]] = []
    for i in range(args.n_rounds):
        row = round_row(server, asked, [each["result"] for each in expected], n_leave=10)
        rows.append({"round": i + 1, "seconds_alone": alone, **row})
        print(rows[-1], flush=True)
    write_results(args.output, rows, exit_code=server.stop())


if __name__ == "__main__":
    main()
