"""Time of a family of three and four models against a pair: training, diagnosis and the use of latents.

python benchmarks/family_cost.py --output benchmarks/results/family_cost.json

CPU time on one thread, interleaved rounds, medians. All crosscoders have the same width per model, latents and k. Two
models of a family are compared, and then all with the first in one pass over the data.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.synthetic import shuffled_batches
from sae_lens_crosscoder.training import CrosscoderTrainer, CrosscoderTrainerConfig

D_MODEL, D_SAE, K, BATCH, STEPS = 256, 2048, 16, 1024, 12
N_TOKENS = 8192
SIZES = (2, 3, 4)
NAMES = ("step", "diagnose", "use", "diagnose_all", "use_all")


def activations(n_models: int) -> torch.Tensor:
    """Sparse sums of random directions that all models share, with noise of their own."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.rand(N_TOKENS, 512, generator=generator) * (torch.rand(N_TOKENS, 512, generator=generator) < 0.03)
    shared = codes @ torch.randn(512, D_MODEL, generator=generator)
    return torch.cat([shared + torch.randn(shared.shape, generator=generator) for _ in range(n_models)], dim=1)


class Family:
    """A crosscoder of some models, with what is timed."""

    def __init__(self, n_models: int, folder: str) -> None:
        torch.manual_seed(0)
        self.n_models, self.rows = n_models, activations(n_models)
        cfg = slc.BatchTopKCrosscoderTrainingConfig(d_models=(D_MODEL,) * n_models, d_sae=D_SAE, k=K)
        trainer_cfg = CrosscoderTrainerConfig(
            total_training_samples=10**9, train_batch_size_samples=BATCH, lr=1e-3, log_frequency=10**9
        )
        crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
        batches = shuffled_batches(self.rows, BATCH, 0)
        self.trainer = CrosscoderTrainer(trainer_cfg, crosscoder, batches)
        for _ in range(STEPS):
            self.trainer.step(next(batches))
        crosscoder.save_inference_model(folder)
        self.crosscoder: InferenceCrosscoder = slc.load(folder)

    def step(self) -> None:
        """Training steps."""
        for start in range(0, 4 * BATCH, BATCH):
            self.trainer.step(self.rows[start : start + BATCH])

    def diagnose(self) -> None:
        """Compare two models."""
        slc.diagnose(self.crosscoder, slc.EvalData(activations=self.rows), models=self._pairs()[0])

    def diagnose_all(self) -> None:
        """Compare every model with the first."""
        slc.diagnose(self.crosscoder, slc.EvalData(activations=self.rows))

    def use(self) -> None:
        """Compare two models' use of latents."""
        slc.latent_use(self.crosscoder, slc.EvalData(activations=self.rows), models=self._pairs()[0])

    def use_all(self) -> None:
        """Compare every model's use with the first's."""
        slc.analysis.latent_uses(self.crosscoder, slc.EvalData(activations=self.rows))

    def _pairs(self) -> list[tuple[str, str]]:
        first, *others = self.crosscoder.layout.names
        return [(first, other) for other in others]


def cpu_seconds(call: Callable[[], None]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    import tempfile

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        families = [Family(n, f"{folder}/{n}") for n in SIZES]
    taken: dict[tuple[str, int], list[float]] = {}
    for _ in range(args.rounds):
        for family in families:
            for name in NAMES:
                taken.setdefault((name, family.n_models), []).append(cpu_seconds(getattr(family, name)))
    medians = {key: statistics.median(times) for key, times in taken.items()}
    rows: list[dict[str, Any]] = []
    for (name, n), seconds in medians.items():
        ratio = seconds / medians[name, 2]
        rows.append({"name": name, "n_models": n, "cpu_ms": 1e3 * seconds, "ratio": ratio, "met": ratio <= n / 2})
        print(rows[-1])
    if args.output:
        write_results(args.output, rows)


if __name__ == "__main__":
    main()
