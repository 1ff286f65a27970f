"""Cases with several processes, and with inputs that changed: a row each, as `fault_cases` makes them."""

import os
import random
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from fault_works import SHARD_ROWS, Works
from results_file import ROOT

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from sae_lens_crosscoder.storage.checksums import fingerprint
from sae_lens_crosscoder.training.checkpoints.folder import checkpoints_in, problem_with

sys.path.insert(0, str(ROOT))
from tests.killing import at_change, in_child
from tests.training.processes import on_processes
from tests.training.test_ranks_fail import PHASES, _die_in

N_WORKERS = 2
OTHER_HOOK = "blocks.1.hook_resid_post"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".lock"}


def changed_inputs(works: Works, folder: Path, rng: random.Random) -> str:
    """Call with the folder of a cache and something else: refused, and not a byte has changed."""
    tokens = works.tokens[0]
    write = partial(slc.cache_activations, folder / "cache", prompts_per_shard=SHARD_ROWS)
    write(works.pair, tokens, TINY_HOOK)
    before = contents(folder / "cache")
    what = rng.choice(["weights", "token", "mask", "hook", "precision", "length"])
    mask, place = torch.ones_like(tokens, dtype=torch.bool), (rng.randrange(len(tokens)), rng.randrange(4, 20))
    changed: dict[str, Any] = {"models": works.pair, "tokens": tokens, "hook_name": TINY_HOOK}
    if what == "weights":
        weights = rng.choice([p for model in works.pair.members for _, p in sorted(model.named_parameters())])
        at = rng.randrange(weights.numel())
        with torch.no_grad():
            weights.view(-1)[at] += 1e-3
    elif what == "token":
        changed["tokens"] = tokens.clone()
        changed["tokens"][place] = (tokens[place] + 1) % 100
    elif what == "mask":
        mask[place] = False
        changed["token_mask"] = mask
    elif what == "hook":
        changed["hook_name"] = OTHER_HOOK
    elif what == "precision":
        changed["dtype"] = "float32"
    else:
        changed["tokens"] = tokens[: -rng.randrange(1, len(tokens))]
    try:
        write(**changed)
    except ValueError as error:
        is_named = str(folder) in str(error)
        return "refused" if is_named and contents(folder / "cache") == before else "wrong"
    finally:
        if what == "weights":
            with torch.no_grad():
                weights.view(-1)[at] -= 1e-3
    return "wrong"


def killed_worker(works: Works, folder: Path, rng: random.Random) -> str:
    """One of two workers is killed at a random change of files while the other writes; called again, it writes its."""

    def write(worker: int) -> None:
        options = {"prompts_per_shard": SHARD_ROWS, "worker": (worker, N_WORKERS)}
        cache = slc.cache_activations(folder / "cache", works.pair, works.tokens[0], TINY_HOOK, **options)
        assert cache.path.exists()

    at = rng.randrange(40)
    other = os.fork()
    if other == 0:
        os._exit(in_child(partial(write, 1)))
    strike = lambda: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
    in_child(lambda: at_change(at, folder, partial(write, 0), strike))
    _, status = os.waitpid(other, 0)
    if status != 0 or in_child(partial(write, 0)) != 0:
        return "lost"
    whole = slc.cache_activations(
        folder / "whole", works.pair, works.tokens[0], TINY_HOOK, prompts_per_shard=SHARD_ROWS
    )
    cache = ActivationCache(folder / "cache")
    cache.verify()
    return "written" if fingerprint([*cache, cache.tokens]) == fingerprint([*whole, whole.tokens]) else "wrong"


def killed_rank(phase: str, works: Works, folder: Path, rng: random.Random) -> str:
    """One of two ranks dies in a phase: the other ends by itself, and checkpoints are whole."""
    run = folder / "run" / "checkpoints"
    run.mkdir(parents=True)
    try:
        on_processes(2, _die_in, folder / "processes", phase, run)
    except FileNotFoundError:  # no process comes to its end
        survivors = list(run.parent.glob("survivor-*.pt"))
        are_whole = all(problem_with(path) is None for path in checkpoints_in(run))
        n_expected = {PHASES[2]: 1, PHASES[3]: 2}.get(phase, 0)
        return "as before" if len(survivors) == 1 and are_whole and len(checkpoints_in(run)) == n_expected else "lost"
    return "wrong"


CASES: dict[str, Callable[[Works, Path, random.Random], str]] = {
    "a cache of changed inputs": changed_inputs,
    "a worker of a cache killed": killed_worker,
    **{f"a rank killed {phase}": partial(killed_rank, phase) for phase in PHASES},
}


def measure_case(name: str, works: Works, n_runs: int, folder: Path, rng: random.Random) -> dict[str, Any]:
    """A row: how many cases ended how."""
    counts: Counter[str] = Counter()
    for n in range(n_runs):
        at = folder / f"{n}"
        at.mkdir()
        try:
            counts[CASES[name](works, at, rng)] += 1
        except Exception as error:  # counted: a case may end by any error
            print(f"{name}: {error!r:.300}", file=sys.stderr)
            counts["wrong"] += 1
        shutil.rmtree(at)
    return {"fault": name, "work": "", "n": n_runs, **counts}
