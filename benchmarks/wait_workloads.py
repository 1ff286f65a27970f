"""What waits.py runs in a process per checkout: harvests, a diagnosis, decoupled pairs, a plan."""

import hashlib
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from wait_rows import Times, row

N_LATENTS, MANY = 16_384, 65_536
SCRIPT = str(Path(__file__).resolve())
Run = Callable[[], Any]
Digested = Callable[[Any], bytes]


def tensor_bytes(result: Any) -> bytes:
    return result.numpy().tobytes()


def harvest() -> tuple[Run, Digested]:
    import sae_lens_crosscoder as slc

    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    return _activations(pair, "blocks.2.hook_resid_post"), tensor_bytes


def harvest_equal() -> tuple[Run, Digested]:
    """Harvest at the end of models whose first three layers are equal."""
    import copy

    import sae_lens_crosscoder as slc
    from sae_lens_crosscoder.models.loading import add_jitter

    base = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat").base
    second = copy.deepcopy(base)
    add_jitter(second.blocks[3], 0.02)
    return _activations(slc.HookedModelPair(base, second), "blocks.3.hook_resid_post"), tensor_bytes


def _activations(pair: Any, hook_name: str) -> Run:
    import torch

    tokens = torch.randint(0, 200, (64, 64), generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        with torch.no_grad():
            return pair.activations(tokens, hook_name)

    return run


def random_crosscoder(n_latents: int) -> Any:
    import torch

    import sae_lens_crosscoder as slc

    torch.manual_seed(0)
    crosscoder = slc.JumpReLUCrosscoder(slc.JumpReLUCrosscoderConfig(d_model=64, d_sae=n_latents))
    with torch.no_grad():
        for name, weights in crosscoder.named_parameters():
            weights.normal_() if name != "threshold" else weights.fill_(28.0)
    return crosscoder


def thirds(n_latents: int) -> Any:
    """A table of latents that are chat-only, base-only and shared in turn."""
    import numpy as np
    import pandas as pd

    labels = np.array(["chat_only", "base_only", "shared"])[np.arange(n_latents) % 3]
    return pd.DataFrame({"label": labels, "dead": False})


def diagnose(n_latents: int = N_LATENTS) -> tuple[Run, Digested]:
    import torch

    import sae_lens_crosscoder as slc

    crosscoder, x = random_crosscoder(n_latents), torch.randn(2048, 128)

    def digested(table: Any) -> bytes:
        numbers = table[["nu_error_low", "nu_reconstruction_high"]].round(9).to_csv()
        return "".join([numbers, *(table[name].astype(str).str.cat(sep=" ") for name in ("label", "verdict"))]).encode()

    return lambda: slc.diagnose(crosscoder, slc.EvalData(activations=x, max_norm_ratio=None)).latents, digested


def decoupled_pairs() -> tuple[Run, Digested]:
    import sae_lens_crosscoder as slc

    crosscoder, table = random_crosscoder(N_LATENTS), thirds(N_LATENTS)
    return (
        lambda: slc.analysis.decoupled_pairs(crosscoder, table, 0.5),
        lambda pairs: pairs[["chat_latent", "isolated"]].to_csv().encode(),
    )


def plan() -> tuple[Run, Digested]:
    import contextlib
    import io

    from sae_lens_crosscoder.cli import main as command

    for module in ("public", "cli.plan"):
        importlib.import_module(f"sae_lens_crosscoder.{module}")

    def run() -> str:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            assert command(["plan", "--d_model", "2304", "--d_sae", "73728", "--k", "100", "--device", "cuda"]) == 0
        return printed.getvalue()

    return run, lambda printed: printed.split("memory on")[0].encode()


WORKLOADS: dict[str, Callable[[], tuple[Run, Digested]]] = {
    "harvest": harvest,
    "harvest/equal": harvest_equal,
    "decoupled_pairs": decoupled_pairs,
    "diagnose": diagnose,
    "diagnose/65k": lambda: diagnose(MANY),
    "plan": plan,
}
FIRST_CALL = {"plan"}
"""Measured at its first call in a fresh process, as users wait for it; the others at a later one."""


def answer_requests() -> None:
    """Read names of workloads from standard input; answer with CPU and wall milliseconds and a digest of the result."""
    ready: dict[str, tuple[Run, Digested]] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in ready:
            ready[name] = WORKLOADS[name]()
            if name not in FIRST_CALL:
                ready[name][0]()
        run, digested = ready[name]
        cpu, wall = time.process_time(), time.perf_counter()
        result = run()
        times = [(time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3]
        print(json.dumps([*times, hashlib.sha256(digested(result)).hexdigest()]), flush=True)


def environment(checkout: Path, **more: str) -> dict[str, str]:
    """Environment of a process that imports a checkout's package, with OpenMP's settings of our commands."""
    return {"OMP_WAIT_POLICY": "passive", **os.environ, "PYTHONPATH": str(checkout), **more}


class Process:
    """One checkout's process, with one thread."""

    def __init__(self, checkout: Path) -> None:
        self.checkout = checkout
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        alone = environment(checkout, OMP_NUM_THREADS="1", MKL_NUM_THREADS="1")
        self.process = subprocess.Popen([sys.executable, SCRIPT], env=alone, text=True, **pipes)

    def run(self, name: str) -> tuple[float, float, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(name, file=self.process.stdin, flush=True)
        cpu, wall, digest = json.loads(self.process.stdout.readline())
        return cpu, wall, digest

    def end(self) -> None:
        self.process.communicate()


def compared(name: str, checkouts: list[Path], rounds: int) -> dict[str, Any]:
    """A row of ours against today's: both calls in turn, with equal results."""
    times: list[Times] = [[], []]
    processes = [Process(checkout) for checkout in checkouts]
    for _ in range(rounds):
        answers = [process.run(name) for process in processes]
        assert answers[0][2] == answers[1][2], f"{name}: the checkouts give different results"
        for kept, (cpu, wall, _digest) in zip(times, answers, strict=True):
            kept.append((cpu, wall))
        if name in FIRST_CALL:
            for process in processes:
                process.end()
            processes = [Process(checkout) for checkout in checkouts]
    for process in processes:
        process.end()
    return row(name, *times, peer="today")


if __name__ == "__main__":
    answer_requests()
