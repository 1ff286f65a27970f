"""Training and caching that are killed at random moments and gone on with, beside ones that are not; memory over time.

python benchmarks/faults.py --kills 20 --soak-minutes 30 --output benchmarks/results/faults.json

Every killed process gets SIGKILL, every second one of those that train while it writes a checkpoint. `resumed_equal`
and `cache_equal` count after how many kills all files at the end were those of the unbroken run, to the bit;
`unreadable_checkpoints` counts folders with a checkpoint's name that were not whole ones. The soak runs a process that
trains and one that caches and reads, side by side, and compares the most memory they held during and after a warm-up.
"""

import argparse
import contextlib
import hashlib
import multiprocessing
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_dataset
from sae_lens_crosscoder.training.checkpoints.folder import checkpoints_in, problem_with
from sae_lens_crosscoder.training.interruption import TrainingInterrupted
from sae_lens_crosscoder.workflows.demo import DemoConfig, demo_runner_config

STEPS, D_SAE, BATCH = 300, 256, 256
CACHE_ROWS, SHARD_ROWS, MODELS = 4096, 64, ("tiny-base", "tiny-chat")
SOAK_ROWS, MOST_STEPS = 8192, 10**9
MOST_WARM_UP_MINUTES, MOST_GROWTH_MIB, MOST_GROWTH = 5.0, 20.0, 0.02
SECONDS_BETWEEN_SAMPLES = 1.0
# Children are copies of a process that has imported everything.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["sae_lens_crosscoder"])

Job = Callable[[Path, Connection], None]


def run_config(folder: Path, steps: int = STEPS) -> slc.CrosscoderRunnerConfig:
    """Two crosscoders on one stream, saved every few steps."""
    cfg = demo_runner_config(DemoConfig(d_sae=D_SAE, training_steps=steps, batch_size=BATCH))
    cfg.checkpoint_path, cfg.output_path = str(folder / "checkpoints" / "run"), str(folder / "output")
    cfg.n_checkpoints, cfg.n_checkpoints_kept, cfg.n_held_out_rows = STEPS // 5, 2, 8
    return cfg


def train(folder: Path, started: Connection) -> None:
    """Train, going on from the latest checkpoint if there is one."""
    cfg = run_config(folder)
    if checkpoints_in(folder / "checkpoints" / "run"):
        cfg.resume_from_checkpoint = "latest"
    runner = slc.CrosscoderTrainingRunner(cfg)
    started.send(None)
    runner.run()


def cache(folder: Path, started: Connection) -> None:
    """Write a cache, or what is missing in it."""
    tokens = torch.tensor(tiny_dataset(CACHE_ROWS, seed=0)["input_ids"])
    started.send(None)
    slc.cache_activations(folder / "output", MODELS, tokens, TINY_HOOK, prompts_per_shard=SHARD_ROWS)


def one_thread(job: Job, folder: Path, started: Connection) -> None:
    torch.set_num_threads(1)
    job(folder, started)


@contextmanager
def working(job: Job, folder: Path) -> Generator[BaseProcess]:
    """A process that does the job, from when its work proper has begun."""
    here, there = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=one_thread, args=(job, folder, there))
    process.start()
    there.close()
    with contextlib.suppress(EOFError):  # it ended before it began
        here.recv()
    yield process
    process.join()


def finished(job: Job, folder: Path) -> float | None:
    """The seconds that the job takes to its end; None if it fails."""
    with working(job, folder) as process:
        start = time.perf_counter()
        process.join()
    return time.perf_counter() - start if process.exitcode == 0 else None


def killed(job: Job, folder: Path, seconds: float, while_writing: bool, random_number: random.Random) -> bool:
    """Whether the job was still at work when it was killed, after so many seconds or in the write that follows."""
    with working(job, folder) as process:
        time.sleep(seconds)
        while while_writing and process.is_alive() and not list(folder.glob("checkpoints/*/*.partial")):
            time.sleep(1e-4)
        if while_writing:
            time.sleep(0.02 * random_number.random())
        process.kill()
    return process.exitcode == -signal.SIGKILL


def contents(folder: Path) -> dict[str, str]:
    """What is in the files that a job is for, but for the paths that a run's config names."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "runner_cfg.json"]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def kill_rows(job: Job, n_kills: int, folder: Path, random_number: random.Random) -> list[dict[str, Any]]:
    """One row for every kill: when it came, what it left, and whether the job's end was the unbroken one's."""
    seconds = finished(job, folder / "unbroken")
    assert seconds is not None
    unbroken = contents(folder / "unbroken" / "output")
    rows: list[dict[str, Any]] = []
    while len(rows) < n_kills:
        at = folder / f"{job.__name__}-{len(rows)}"
        while_writing = job is train and len(rows) % 2 == 1
        share = random_number.random()
        if not killed(job, at, share * seconds, while_writing, random_number):
            shutil.rmtree(at)  # it was done before
            continue
        named = [path for path in at.glob("checkpoints/*/*") if not path.suffix]
        row = {
            "name": job.__name__,
            "killed_at_frac": share,
            "was_writing": bool(list(at.glob("checkpoints/*/*.partial")) or list(at.glob("output/*.partial"))),
            "n_checkpoints": len(named),
            "n_unreadable": sum(problem_with(path) is not None for path in named),
        }
        is_done = finished(job, at) is not None
        rows.append({**row, "equal": is_done and contents(at / "output") == unbroken})
        print(rows[-1], flush=True)
        shutil.rmtree(at)
    return rows


def train_for_long(folder: Path, started: Connection) -> None:
    """Train until told to stop, on rows that begin anew when they end."""
    cfg = run_config(folder, steps=MOST_STEPS)
    cfg.n_checkpoints = MOST_STEPS // 2000
    rows = Dataset.from_dict({"input_ids": tiny_dataset(SOAK_ROWS, seed=0)["input_ids"]})
    runner = slc.CrosscoderTrainingRunner(cfg, override_dataset=rows)
    started.send(None)
    with contextlib.suppress(TrainingInterrupted):
        runner.run()


def cache_for_long(folder: Path, started: Connection) -> None:
    """Write caches and read them, one after another, until killed."""
    tokens = torch.tensor(tiny_dataset(CACHE_ROWS, seed=0)["input_ids"])
    pair = slc.HookedModelPair.from_pretrained(*MODELS)
    started.send(None)
    while True:
        written = slc.cache_activations(folder, pair, tokens, TINY_HOOK, prompts_per_shard=SHARD_ROWS)
        assert sum(len(batch) for batch in written.shuffled(BATCH, n_passes=1)) > 0
        shutil.rmtree(folder)


def soak(minutes: float, folder: Path) -> list[dict[str, Any]]:
    """A row for training and one for caching: how far resident memory rose above its highest during the warm-up."""
    warm_up = 60 * min(MOST_WARM_UP_MINUTES, minutes / 6)
    samples: dict[str, list[tuple[float, float]]] = {"soak/train": [], "soak/cache": []}
    jobs = dict(zip(samples, (train_for_long, cache_for_long), strict=True))
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(working(job, folder / job.__name__)) for name, job in jobs.items()}
        start = time.monotonic()
        while (passed := time.monotonic() - start) < 60 * minutes:
            for name, process in processes.items():
                samples[name].append((passed, resident_mib(process)))
            time.sleep(SECONDS_BETWEEN_SAMPLES)
        for process in processes.values():
            process.terminate()
    return [soak_row(name, of_job, warm_up) for name, of_job in samples.items()]


def soak_row(name: str, samples: list[tuple[float, float]], warm_up: float) -> dict[str, Any]:
    before = max(mib for passed, mib in samples if passed < warm_up)
    after = max(mib for passed, mib in samples if passed >= warm_up)
    limit = max(MOST_GROWTH * before, MOST_GROWTH_MIB)
    return {
        "name": name,
        "minutes": samples[-1][0] / 60,
        "warm_up_minutes": warm_up / 60,
        "warm_up_mib": before,
        "growth_mib": after - before,
        "limit_mib": limit,
        "met": after - before < limit,
        "samples_mib": [round(mib, 1) for _, mib in samples[:: max(1, len(samples) // 60)]],
    }


def resident_mib(process: BaseProcess) -> float:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:")) / 1024


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--kills", type=int, default=20, help="of training, and as many of caching")
    flags.add_argument("--soak-minutes", type=float, default=0.0)
    flags.add_argument("--seed", type=int, default=0, help="of the moments")
    flags.add_argument("--output", required=True)
    args = flags.parse_args()
    random_number = random.Random(args.seed)
    with tempfile.TemporaryDirectory() as folder:
        trained, cached = (
            kill_rows(job, args.kills, Path(folder, job.__name__), random_number) for job in (train, cache)
        )
        soaked = soak(args.soak_minutes, Path(folder)) if args.soak_minutes else []
    write_results(
        args.output,
        [*trained, *cached, *soaked],
        kills=len(trained),
        resumed_equal=sum(row["equal"] for row in trained),
        unreadable_checkpoints=sum(row["n_unreadable"] for row in trained),
        cache_kills=len(cached),
        cache_equal=sum(row["equal"] for row in cached),
        soak_met=all(row["met"] for row in soaked) if soaked else None,
    )


if __name__ == "__main__":
    main()
