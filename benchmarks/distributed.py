"""Whether several processes train the crosscoder that one trains, on world A: weights, checkpoints, processes that die.

python benchmarks/distributed.py --processes 2 4 --output benchmarks/results/distributed.json

The processes are this machine's, joined by gloo; how long they take says nothing about several devices.
"""

import argparse
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from planted_pairs import BATCH, D_SAE, LEARNING_RATE, POOL_TOKENS, STEPS, Cell, build, card_columns, claims
from results_file import write_results
from torch import Tensor

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS
from sae_lens_crosscoder.synthetic import score_card, truth_table
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.planted import PlantedTokens, PlantedWorld
from sae_lens_crosscoder.training.checkpoints.folder import checkpoints_in
from sae_lens_crosscoder.training.distributed.process_group import ProcessGroup

EVALUATION_TOKENS = 24_000
N_CHECKPOINTS = 20
EQUAL = 1e-6  # weights that differ by less are those of the same run

Weights = dict[str, Tensor]


class Experiment:
    """One crosscoder on one world, trained by however many processes this is called in."""

    def __init__(self, cell: Cell, dtype: str, steps: int) -> None:
        self.cell = replace(cell, fields=cell.fields | {"dtype": dtype})
        self.dtype, self.steps = dtype, steps
        self.world: PlantedWorld = cell.world(0)
        self.pool = self.world.sample(POOL_TOKENS, seed=1000).activations

    def train(
        self, n_latents: int, stop_at: int | None = None, folder: Path | None = None, kill_after: float = 0
    ) -> Weights | None:
        """State of the whole crosscoder, on the first process; from the last checkpoint in `folder`, if it has one.

        Args:
            stop_at: a step after which the data end.
            kill_after: seconds from the first checkpoint to the death of the last process, if any.
        """
        collectives = ProcessGroup(n_latents, "cpu") if dist.is_initialized() else SINGLE_PROCESS
        trainer = self._trainer(collectives, folder)
        dies = kill_after > 0 and collectives.rank == collectives.n_processes - 1
        trainer.data_provider = self._batches(collectives, stop_at or self.steps, kill_after if dies else 0)
        try:
            trainer.fit()
        except ValueError:
            if stop_at is None:
                raise
        whole = collectives.unshard(trainer.sae)
        return None if whole is None else dict(whole.state_dict())

    def crosscoder(self, weights: Weights) -> Any:
        crosscoder = build(self.cell, self.world, seed=0)
        crosscoder.load_state_dict(weights)
        return crosscoder

    def _trainer(self, collectives: Any, folder: Path | None) -> Any:
        cfg = slc.CrosscoderTrainerConfig(
            total_training_samples=self.steps * BATCH,
            train_batch_size_samples=BATCH,
            lr=LEARNING_RATE,
            lr_warm_up_steps=self.steps * 3 // 100,
            lr_decay_steps=self.steps // 5,
            dead_feature_window=min(200, self.steps // 10),
            n_checkpoints=0 if folder is None else N_CHECKPOINTS,
            checkpoint_path=None if folder is None else str(folder),
            resume_from_checkpoint="latest" if folder is not None and checkpoints_in(folder) else None,
        )
        part = collectives.shard(build(self.cell, self.world, seed=0))
        return slc.CrosscoderTrainer(cfg, part, iter(()))

    def _batches(self, collectives: Any, stop_at: int, kill_after: float) -> Iterator[Tensor]:
        """This process's rows of every batch."""
        first_checkpoint = self.steps // (N_CHECKPOINTS + 1) + 2
        for step, batch in zip(range(stop_at), shuffled_batches(self.pool, BATCH, seed=0), strict=False):
            if kill_after > 0 and step == first_checkpoint:
                threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()
            yield batch.to(getattr(torch, self.dtype)).chunk(collectives.n_processes)[collectives.rank]

    def first_gradients(self, n_latents: int) -> Weights | None:
        """Of the whole crosscoder at its first step."""
        collectives = ProcessGroup(n_latents, "cpu") if dist.is_initialized() else SINGLE_PROCESS
        trainer = self._trainer(collectives, None)
        trainer.sae.cfg.gradient_clip_norm = None
        trainer.optimizer.register_step_post_hook(gradients_become_weights)
        trainer.step(collectives.all_gather(next(self._batches(collectives, 1, 0)), "latents"))
        whole = collectives.unshard(trainer.sae)
        return None if whole is None else {name: weights.detach() for name, weights in whole.named_parameters()}


def gradients_become_weights(optimizer: Any, *_: Any) -> None:
    """Put gradients where what brings the parts of a crosscoder together finds them."""
    for weights in optimizer.param_groups[0]["params"]:
        weights.data.copy_(weights.grad)


def on_processes(n: int, work: Callable[..., Any], *args: Any) -> Any:
    """What `work` returns in the first of n processes of one group."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_process, args=(n, work, folder, args), nprocs=n, start_method="fork")
        return torch.load(Path(folder, "result.pt"), weights_only=True)


def _process(rank: int, n: int, work: Callable[..., Any], folder: str, args: tuple[Any, ...]) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=n)
    result = work(*args)
    if rank == 0:
        torch.save(result, Path(folder, "result.pt"))
    dist.destroy_process_group()


def difference(found: Weights, expected: Weights) -> float:
    """The largest difference of two crosscoders' weights."""
    return max(float((found[name] - expected[name]).abs().max()) for name in ("W_enc", "W_dec", "b_enc", "b_dec"))


def gradient_difference(found: Weights, expected: Weights) -> float:
    """The largest, as a share of the largest entry of that weight's gradient."""
    return max(float((found[n] - expected[n]).abs().max() / expected[n].abs().max()) for n in expected)


def fve(experiment: Experiment, weights: Weights, tokens: PlantedTokens) -> float:
    crosscoder = experiment.crosscoder(weights)
    explained = VarianceExplained(crosscoder.layout)
    with torch.no_grad():
        for batch in tokens.activations.to(crosscoder.dtype).split(2048):
            explained.add(batch, crosscoder.decode(crosscoder.encode(batch)))
    return explained.pooled()


def card(experiment: Experiment, weights: Weights, tokens: PlantedTokens) -> dict[str, Any]:
    """World A's score card of the crosscoder as saved."""
    world = experiment.world
    with tempfile.TemporaryDirectory() as folder:
        experiment.crosscoder(weights).save_inference_model(folder)
        saved = slc.load(folder)
    tokens = replace(tokens, activations=tokens.activations.to(saved.dtype))
    table = slc.diagnose(saved, slc.EvalData(activations=tokens.activations.split(2048))).latents
    return card_columns(asdict(score_card(world, truth_table(world, saved, tokens), table)))


def is_same_card(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether two score cards have the same numbers, of which nan is one."""
    one, other = (torch.tensor(list(card.values()), dtype=torch.float64) for card in (found, expected))
    return torch.allclose(one, other, rtol=1e-6, atol=1e-9, equal_nan=True)


def resumed(experiment: Experiment, n: int, n_latents: int) -> Any:
    """Trained a third of the way by n processes, another third by half as many, and to the end by one."""
    third = experiment.steps // 3
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent, "run")
        on_processes(n, experiment.train, n_latents, third, folder)
        if n > 2:
            on_processes(n // 2, experiment.train, min(n_latents, n // 2), 2 * third, folder)
        return experiment.train(1, None, folder)


def killed(experiment: Experiment, n: int, n_latents: int, seconds: float, n_moments: int) -> list[float]:
    """Differences from the unbroken run's weights that are left when a process dies and the run is resumed."""
    moments, crosscoders = random.Random(0), []
    for _ in range(n_moments):
        with tempfile.TemporaryDirectory() as parent:
            folder = Path(parent, "run")
            try:
                on_processes(n, experiment.train, n_latents, None, folder, moments.uniform(0.01, 0.8) * seconds)
            except mp.ProcessExitedException as error:  # pyright: ignore[reportPrivateImportUsage]
                print(f"  {error}; resuming from {checkpoints_in(folder)[-1].name} tokens", flush=True)
            crosscoders.append(on_processes(n, experiment.train, n_latents, None, folder))
    alone = experiment.train(1)
    return [difference(crosscoder, alone) for crosscoder in crosscoders]


def layouts(n: int) -> list[int]:
    """Into how many slices the latents can be divided, among n processes."""
    return [n_latents for n_latents in range(1, n + 1) if n % n_latents == 0]


def compare(cell: Cell, processes: list[int], args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for every layout."""
    double, single = Experiment(cell, "float64", args.steps), Experiment(cell, "float32", args.steps)
    long = Experiment(cell, "float64", args.score_card_steps or STEPS[cell.architecture])
    tokens = double.world.sample(EVALUATION_TOKENS, seed=2000)
    alone, alone_single, gradients = double.train(1), single.train(1), single.first_gradients(1)
    alone_card = card(long, long.train(1), tokens)
    for n in processes:
        for n_latents in layouts(n):
            started = time.perf_counter()
            together = on_processes(n, double.train, n_latents)
            seconds = time.perf_counter() - started
            is_chosen = n_latents == layouts(n)[-2]  # what takes long is done in one layout
            found_card = card(long, on_processes(n, long.train, n_latents), tokens) if is_chosen else None
            deaths = killed(double, n, n_latents, seconds, args.moments) if is_chosen else []
            yield {
                "layout": f"data {n // n_latents} x latents {n_latents}",
                "processes": n,
                "architecture": cell.architecture,
                "max_weight_difference_float64": difference(together, alone),
                "first_gradient_difference_float32": gradient_difference(
                    on_processes(n, single.first_gradients, n_latents), gradients or {}
                ),
                "fve_difference": abs(
                    fve(single, on_processes(n, single.train, n_latents), tokens) - fve(single, alone_single, tokens)
                ),
                "resumed_equal": difference(resumed(double, n, n_latents), alone) < EQUAL,
                "resumed_equal_after_death": [left < EQUAL for left in deaths],
                "score_card_unchanged": found_card and is_same_card(found_card, alone_card),
                "score_card": found_card,
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--moments", type=int, default=5, help="at which a process dies")
    parser.add_argument("--score_card_steps", type=int, help="by default as in planted_pairs.py")
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for cell in claims():
        for row in compare(cell, args.processes, args):
            rows.append(row)
            print({name: value for name, value in row.items() if name != "score_card"}, flush=True)
            write_results(args.output, rows, steps=args.steps, batch=BATCH, d_sae=D_SAE, equal_below=EQUAL)


if __name__ == "__main__":
    main()
