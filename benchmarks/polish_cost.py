"""What the rounds of a polish cost, in steps of the training that they follow, on one core.

python benchmarks/polish_cost.py --output benchmarks/results/polish_cost.json

Tokens are sums of k of the decoder's directions with noise. Training steps are timed in turn with rounds. Fewer tokens
than a round has by default would be no measure: the least squares of a wide decoder are then ill-conditioned.
"""

import argparse
import statistics
from dataclasses import asdict
from typing import Any

import torch
from harness import hand_back, in_child, interleaved
from results_file import write_results
from step_peers import Size

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.training.polishing.rounds import PolishState, default_candidates, polish_round

ROUND_TOKENS = slc.training.PolishConfig(lr=1.0).n_tokens_per_round
N_ROUNDS = slc.training.PolishConfig(lr=1.0).n_rounds
NOISE = 0.02


SIZES = {
    "built-in pair": Size(96, 1536, 8, 512),
    "middle": Size(256, 8192, 32, 1024),
    "wide": Size(512, 16_384, 32, 1024),
}


def child(name: str, rounds: int) -> None:
    """Time a round and a step of one size, and hand both back in milliseconds."""
    torch.set_num_threads(1)
    size = SIZES[name]
    torch.manual_seed(0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=size.d_model, d_sae=size.d_sae, k=size.k)
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    units = torch.nn.functional.normalize(torch.randn(size.d_sae, 2 * size.d_model), dim=1)

    def tokens(n: int) -> torch.Tensor:
        latents = torch.randint(size.d_sae, (n, size.k))
        x = torch.zeros(n, 2 * size.d_model)
        for slot in range(size.k):
            x += (0.5 + torch.rand(n, 1)) * units[latents[:, slot]]
        return x + NOISE * torch.randn_like(x)

    x = tokens(ROUND_TOKENS)
    state = PolishState(units, torch.zeros(2 * size.d_model))
    n_candidates = default_candidates(size.d_sae, size.k)
    polish_round(state, x, size.k, N_ROUNDS, "k", n_candidates)  # which pursues twice, to find where to stop
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=size.batch, lr=1e-4, lr_warm_up_steps=0
    )
    batch = tokens(size.batch)
    trainer = slc.CrosscoderTrainer(trainer_cfg, crosscoder, iter(lambda: batch, None))

    def one_round() -> None:
        state.n_rounds = 1
        polish_round(state, x, size.k, N_ROUNDS, "k", n_candidates)

    def one_step() -> None:
        trainer.step(batch)

    times = interleaved({"round": one_round, "step": one_step}, rounds, warm_up=0)
    hand_back({name: statistics.median(values) for name, values in times.items()})


def row(name: str, rounds: int) -> dict[str, Any]:
    """Return the times of one size."""
    times = in_child(__file__, [name, str(rounds)])
    return {
        "name": name,
        **asdict(SIZES[name]),
        "step_ms": times["step"],
        "round_ms": times["round"],
        "rounds_in_steps": N_ROUNDS * times["round"] / times["step"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", nargs=2)
    args = parser.parse_args()
    if args.child:
        return child(args.child[0], int(args.child[1]))
    rows = [row(name, args.rounds) for name in SIZES]
    for each in rows:
        print(each)
    write_results(args.output, rows, n_rounds=N_ROUNDS, round_tokens=ROUND_TOKENS)
    return None


if __name__ == "__main__":
    main()
