"""Where people wait, against an unmodified checkout: the demo, harvesting, decoupled pairs, a diagnosis, small steps.

python benchmarks/waits.py --today ../wt-today --output benchmarks/results/waits.json

With --rows, the other rows of the output stay as they are; each row names the commit that it was measured at.
Both checkouts run in a process of their own with one thread; each round calls both in turn and compares their results.
Times are CPU times, which a busy machine changes least, with wall times beside them.
"""

import argparse
import hashlib
import importlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from results_file import COMMIT, ROOT, write_results

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as our commands set it: idle threads would count as work
SCRIPT = str(Path(__file__).resolve())
TITLES = {
    "demo": "the command demo, whole process (a twentieth of its steps)",
    "harvest": "activations of the built-in pair, 4,096 tokens",
    "harvest/equal": "the built-in base model beside itself with noise on its last of four layers, 4,096 tokens",
    "decoupled_pairs": "decoupled pairs among 16,384 latents, two thirds one-sided",
    "diagnose": "diagnosis of 16,384 latents on 2,048 tokens",
    "pairs/65k": "decoupled pairs among 65,536 latents, beside one pass of the same products",
    "diagnose/65k": "diagnosis of 65,536 latents on 2,048 tokens",
    "plan": "the command plan, beyond its imports",
    "step/tiny": "training step, 2 x 32 wide, 512 latents, k 16, batch 256",
    "step/wide": "training step, 2 x 256 wide, 8,192 latents, k 32, batch 1,024, beside the encoder's product alone",
    "harvest/gemma2": "activations of a random Gemma-2 pair of bridges, beside two plain passes that stop at the layer",
    "harvest/llama": "the same of a random Llama pair",
    "harvest/qwen3": "the same of a random Qwen-3 pair",
    "training/sae_lens": "a step of training with harvest, 2 x 576 wide, 16,384 latents, batch 2,048; SAELens's runner",
    "training/dictionary_learning": "the same; dictionary_learning's crosscoder trainer",
}
TARGETS = {
    **{"demo": 2.0, "harvest": 2.0, "decoupled_pairs": 4.0, "diagnose": 2.7, "step/tiny": 3.0},
    "harvest/equal": 1.6,  # eight layers over five
    "pairs/65k": 1 / 3,
    **{"step/wide": 1 / 1.45, "training/sae_lens": 3.0, "training/dictionary_learning": 4.0},
    **{f"harvest/{name}": 1 / 1.1 for name in ("gemma2", "llama", "qwen3")},
}
MOST_MS = {"diagnose/65k": 5000, "plan": 1000}
"""Targets in CPU time of ours, for rows without a target of the ratio."""
WHY = {
    "demo": "imports and the report take the same time as before, and weigh more in a short demo",
    "harvest": "what remains is matrix products, attention, and layer norms in their own order of operations",
    "diagnose": "the rest is the tokens, and the ratios of 400 resamples",
    "diagnose/65k": "the rest is the tokens, and the ratios of 400 resamples",
    "step/tiny": "operations on few numbers are bound by their dispatch; a dense step takes twice as long as this one",
    "step/wide": "Adam reads and writes all weights and moments, and both weight gradients are written before it may",
    "harvest/llama": "the bridge's attention is kept bit by bit, and is not fused",
    "harvest/qwen3": "the bridge's attention is kept bit by bit, and is not fused",
    "training/sae_lens": "both runs harvest the same activations, and hold them in a buffer",
    "training/dictionary_learning": "both runs harvest the same activations",
}
N_LATENTS, MANY = 16_384, 65_536
TRAINING = ("training/sae_lens", "training/dictionary_learning")


def harvest() -> Callable[[], bytes]:
    import torch

    import sae_lens_crosscoder as slc

    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    tokens = torch.randint(0, 200, (64, 64), generator=torch.Generator().manual_seed(0))

    def run() -> bytes:
        with torch.no_grad():
            return pair.activations(tokens, "blocks.2.hook_resid_post").numpy().tobytes()

    return run


def harvest_equal() -> Callable[[], bytes]:
    """Harvest at the end of models whose first three layers are equal."""
    import copy

    import torch

    import sae_lens_crosscoder as slc
    from sae_lens_crosscoder.models.loading import add_jitter

    base = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat").base
    second = copy.deepcopy(base)
    add_jitter(second.blocks[3], 0.02)
    pair = slc.HookedModelPair(base, second)
    tokens = torch.randint(0, 200, (64, 64), generator=torch.Generator().manual_seed(0))

    def run() -> bytes:
        with torch.no_grad():
            return pair.activations(tokens, "blocks.3.hook_resid_post").numpy().tobytes()

    return run


def _crosscoder(n_latents: int) -> Any:
    import torch

    import sae_lens_crosscoder as slc

    torch.manual_seed(0)
    crosscoder = slc.JumpReLUCrosscoder(slc.JumpReLUCrosscoderConfig(d_model=64, d_sae=n_latents))
    with torch.no_grad():
        for name, weights in crosscoder.named_parameters():
            weights.normal_() if name != "threshold" else weights.fill_(28.0)
    return crosscoder


def diagnose(n_latents: int = N_LATENTS) -> Callable[[], bytes]:
    import torch

    import sae_lens_crosscoder as slc

    crosscoder, x = _crosscoder(n_latents), torch.randn(2048, 128)

    def run() -> bytes:
        table = slc.diagnose(crosscoder, slc.EvalData(activations=x, max_norm_ratio=None)).latents
        return table[["nu_error_low", "nu_reconstruction_high"]].round(9).to_csv().encode() + b"".join(
            table[name].astype(str).str.cat(sep=" ").encode() for name in ("label", "verdict")
        )

    return run


def decoupled_pairs() -> Callable[[], bytes]:
    import sae_lens_crosscoder as slc

    crosscoder, table = _crosscoder(N_LATENTS), _thirds(N_LATENTS)
    return lambda: slc.analysis.decoupled_pairs(crosscoder, table, 0.5)[["chat_latent", "isolated"]].to_csv().encode()


def _thirds(n_latents: int) -> Any:
    """A table of latents that are chat-only, base-only and shared in turn."""
    import numpy as np
    import pandas as pd

    labels = np.array(["chat_only", "base_only", "shared"])[np.arange(n_latents) % 3]
    return pd.DataFrame({"label": labels, "dead": False})


def plan() -> Callable[[], bytes]:
    import contextlib
    import io

    from sae_lens_crosscoder.cli import main as command

    for module in ("public", "cli.plan"):
        importlib.import_module(f"sae_lens_crosscoder.{module}")

    def run() -> bytes:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert command(["plan", "--d_model", "2304", "--d_sae", "73728", "--k", "100", "--device", "cuda"]) == 0
        return printed.getvalue().split("memory on")[0].encode()

    return run


WORKLOADS = {
    "harvest": harvest,
    "harvest/equal": harvest_equal,
    "decoupled_pairs": decoupled_pairs,
    "diagnose": diagnose,
    "diagnose/65k": lambda: diagnose(MANY),
    "plan": plan,
}
FIRST_CALL = {"plan"}
"""Measured at its first call in a fresh process, as users wait for it; the others at a later one."""


def child() -> None:
    """Read names of workloads from standard input; answer with CPU and wall milliseconds and a digest of the result."""
    ready: dict[str, Callable[[], bytes]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready[name] = WORKLOADS[name]()
            if name not in FIRST_CALL:
                ready[name]()
        cpu, wall = time.process_time(), time.perf_counter()
        result = ready[name]()
        times = [(time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3]
        print(json.dumps([*times, hashlib.sha256(result).hexdigest()]), flush=True)


def _environment(checkout: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Process:
    """One checkout's process."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        command = [sys.executable, SCRIPT, "--child"]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, env=_environment(checkout), text=True, **pipes)

    def run(self, name: str) -> tuple[float, float, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        cpu, wall, digest = json.loads(self.process.stdout.readline())
        return cpu, wall, digest


def row(name: str, ours: list[tuple[float, float]], theirs: list[tuple[float, float]], peer: str) -> dict[str, Any]:
    """A row; `ratio` is the median over rounds of their CPU time over ours."""
    ratio = statistics.median(b[0] / a[0] for a, b in zip(ours, theirs, strict=True))
    medians = [[statistics.median(times) for times in zip(*rounds, strict=True)] for rounds in (ours, theirs)]
    if name in TARGETS:
        target, met = f"ratio >= {TARGETS[name]:.2g}", ratio >= TARGETS[name]
    else:
        target, met = f"at most {MOST_MS[name]:,} ms", medians[0][0] <= MOST_MS[name]
    return {
        "name": name,
        "title": TITLES[name],
        "ours_ms": medians[0][0],
        f"{peer}_ms": medians[1][0],
        "ours_wall_ms": medians[0][1],
        f"{peer}_wall_ms": medians[1][1],
        "rounds": len(ours),
        "ratio": ratio,
        "target": target,
        "met": met,
        "why": None if met else WHY.get(name),
        "commit": COMMIT,
    }


def compared(name: str, processes: list[Process], rounds: int) -> dict[str, Any]:
    times: list[list[tuple[float, float]]] = [[], []]
    for _ in range(rounds):
        if name in FIRST_CALL:
            processes = [Process(process.checkout) for process in processes]
        answers = [process.run(name) for process in processes]
        if name in FIRST_CALL:
            for process in processes:
                process.process.communicate()
        assert answers[0][2] == answers[1][2], f"{name}: the checkouts give different results"
        for kept, (cpu, wall, _digest) in zip(times, answers, strict=True):
            kept.append((cpu, wall))
    return row(name, *times, peer="today")


def demo(checkouts: list[Path]) -> dict[str, Any]:
    """Run the command once in each checkout; the figures that it saves must be the same."""
    times: list[list[tuple[float, float]]] = []
    saved: list[Any] = []
    for checkout in checkouts:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "sae_lens_crosscoder", "demo", "--output_path", folder]
            before, wall = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            done = [*command, "--training_steps", "125"]
            subprocess.run(done, env=_environment(checkout), cwd=folder, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times.append([(cpu * 1e3, (time.perf_counter() - wall) * 1e3)])
            summary = json.loads(Path(folder, "summary.json").read_text())["crosscoders"]
            saved.append([f"{part[name]:.2f}" for part in summary.values() for name in ("fve_base", "fve_chat", "l0")])
    assert saved[0] == saved[1], f"the demos' figures differ: {saved}"
    return row("demo", *times, peer="today")


def wide_pairs(rounds: int) -> dict[str, Any]:
    """Decoupled pairs, against the products that they need and nothing else, in this process."""
    import torch
    from torch.nn.functional import normalize

    import sae_lens_crosscoder as slc

    torch.set_num_threads(1)
    crosscoder, table = _crosscoder(MANY), _thirds(MANY)
    found = slc.analysis.decoupled_pairs(crosscoder, table, 0.5)
    base, chat = (normalize(decoder.detach(), dim=-1) for decoder in crosscoder.decoders)
    kinds = {kind: torch.tensor(table.index[table.label == kind].to_numpy()) for kind in ("chat_only", "base_only")}
    ends = [torch.tensor(table.index[table.label != kind].to_numpy()) for kind in kinds]
    products = [(chat[kinds["chat_only"]], base[kinds["base_only"]])]
    for name, own in (("chat_latent", chat), ("base_latent", base)):
        rows = own[torch.tensor(found[name].unique())]
        products += [(rows, decoder[end]) for decoder, end in zip((base, chat), ends, strict=True)]

    def one_pass() -> None:
        for rows, columns in products:
            for part in rows.split(512):
                for others in columns.split(2048):
                    part @ others.T

    def ours() -> None:
        again = slc.analysis.decoupled_pairs(crosscoder, table, 0.5)
        assert again.equals(found)

    times: list[list[tuple[float, float]]] = [[], []]
    for call, kept in [*zip((ours, one_pass), times, strict=True)] * rounds:
        cpu, wall = time.process_time(), time.perf_counter()
        call()
        kept.append(((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3))
    return {**row("pairs/65k", *times, peer="peer"), "peer": "one pass of the products", "n_pairs": len(found)}


def tiny_step(rounds: int) -> dict[str, Any]:
    """Our step against SAELens's, in this process."""
    import torch
    from step_peers import activations, sae_lens_step, stepping
    from training_step import SIZES, exactness, our_trainer

    torch.set_num_threads(1)
    size = SIZES["step/tiny"]
    batches = activations(size)
    trainer = our_trainer(size, batches, screening="float32")
    steps = [stepping(trainer, size, batches), sae_lens_step(size, batches)]
    times: list[list[tuple[float, float]]] = [[], []]
    for step, kept in [*zip(steps, times, strict=True)] * (rounds + 1):  # the first round warms up
        cpu, wall = time.process_time(), time.perf_counter()
        for _ in range(50):
            step()
        kept.append(((time.process_time() - cpu) * 20, (time.perf_counter() - wall) * 20))
    error = exactness(trainer, size, batches[0])
    return {**row("step/tiny", times[0][1:], times[1][1:], peer="peer"), "peer": "SAELens", **error}


def peer_row(name: str, rounds: int, dictionary_learning: str | None) -> dict[str, Any]:
    """A row beside another library, in this process."""
    import waits_peers

    kind, _, peer = name.partition("/")
    if kind == "step":
        times = waits_peers.wide_step(rounds)
    elif kind == "harvest":
        times = waits_peers.harvest(peer, rounds)
    else:
        times = waits_peers.whole_training(max(1, rounds // 7), dictionary_learning)[peer]
    ours, theirs, more = times
    return {**row(name, ours, theirs, peer="peer"), **more}


def _earlier_rows(output: Path | None) -> dict[str, dict[str, Any]]:
    """Rows of an earlier run, with the commit that they were measured at."""
    if output is None or not output.exists():
        return {}
    document = json.loads(output.read_text())
    return {each["name"]: {"commit": document["commit"], **each} for each in document["rows"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--today", type=Path, help="an unmodified checkout to compare with")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", nargs="+", default=list(TITLES), choices=list(TITLES))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--dictionary-learning", metavar="CHECKOUT")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child()
    checkouts = [ROOT, args.today.resolve()]
    processes = [Process(checkout) for checkout in checkouts]
    others: dict[str, Callable[[], dict[str, Any]]] = {
        "step/tiny": lambda: tiny_step(args.rounds),
        "pairs/65k": lambda: wide_pairs(args.rounds),
        "demo": lambda: demo(checkouts),
    }
    for name in ("step/wide", "harvest/gemma2", "harvest/llama", "harvest/qwen3", *TRAINING):
        others[name] = partial(peer_row, name, args.rounds, args.dictionary_learning)
    rows = _earlier_rows(args.output)
    for name in args.rows:
        rows[name] = others[name]() if name in others else compared(name, processes, args.rounds)
        print(json.dumps(rows[name]), flush=True)
        if args.output is not None:
            write_results(args.output, [rows[title] for title in TITLES if title in rows])
    for process in processes:
        process.process.communicate()


if __name__ == "__main__":
    main()
