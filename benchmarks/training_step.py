"""Times one training step, ours beside what a user would pick today, on the same activations in the same run.

python benchmarks/training_step.py --rows step/base step/dead5 --dictionary-learning CHECKOUT --output FILE
python benchmarks/training_step.py --rows curve --rounds 3 --dictionary-learning CHECKOUT --output FILE

Peers, unmodified: SAELens's BatchTopK trainer on the stacked activations, and the BatchTopK crosscoder trainer of
https://github.com/jkminder/dictionary_learning, from a checkout of yours (without one it is reported as not measured).
The floor is one product of the batch with the encoder's weights: no exact step can do without it.
"""

import argparse
import types
from pathlib import Path
from typing import Any

import torch
from harness import ALLOCATORS, against_target, comparison, hand_back, in_child, interleaved, peak_memory
from results_file import write_results
from step_peers import (
    DICTIONARY_LEARNING,
    FLOORS,
    SAE_LENS,
    Size,
    Step,
    activations,
    dead_latents,
    dictionary_learning_step,
    endless,
    floors,
    sae_lens_step,
    stepping,
)
from torch import Tensor

import sae_lens_crosscoder as slc

SCREENINGS = ("float32", "bfloat16")
SETTLING_STEPS = 20

SIZES = {
    "step/base": Size(256, 8192, 32, 1024),
    "step/dead5": Size(256, 8192, 32, 1024, frac_dead=0.05),
    "step/large": Size(512, 16_384, 64, 1024),
    "step/tiny": Size(32, 512, 16, 256),
    **{f"curve/d_sae={d_sae}": Size(256, d_sae, 32, 1024) for d_sae in (1024, 2048, 4096, 8192, 16_384, 32_768)},
    **{f"curve/k={k}": Size(256, 8192, k, 1024) for k in (4, 8, 16, 32, 64, 128, 256)},
}
# By row, peer and screening: how many times faster a step has to be, or (the floor) at most how many times slower.
TARGETS = {
    "step/base": {SAE_LENS: (5.0, 8.0), DICTIONARY_LEARNING: (4.5, 7.0)},
    "step/dead5": {SAE_LENS: (6.0, 6.0), DICTIONARY_LEARNING: (5.0, 5.0)},
    "step/large": {SAE_LENS: (4.5, 7.5)},
    "step/tiny": {SAE_LENS: (2.0, 2.0)},
}
FLOOR_TARGETS = {"step/base": {"float32": 1.4, "bfloat16": 2.4}}
MEMORY_TARGETS = {SAE_LENS: 4.0, DICTIONARY_LEARNING: 2.5}
ROWS = [*(name for name in SIZES if name.startswith("step")), "step/memory", "curve"]


def our_trainer(size: Size, batches: list[Tensor], **fields: Any) -> slc.CrosscoderTrainer:
    torch.manual_seed(0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=size.d_model, d_sae=size.d_sae, k=size.k, **fields)
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=10**9, train_batch_size_samples=size.batch, lr=1e-3, lr_warm_up_steps=10
    )
    return slc.CrosscoderTrainer(trainer_cfg, slc.BatchTopKTrainingCrosscoder(cfg), endless(batches))


def exactness(trainer: slc.CrosscoderTrainer, size: Size, batch: Tensor) -> dict[str, float]:
    """Where one step of the sparse crosscoder differs from plain products in float64.

    `max_gradient_error` is relative to the largest number in the same gradient; `missed_pairs` counts those that the
    dense selection has and ours has not, ties in float32 apart.
    """
    sae = trainer.sae
    dense: Any = slc.BatchTopKTrainingCrosscoder(
        slc.BatchTopKCrosscoderTrainingConfig(
            d_model=size.d_model, d_sae=size.d_sae, k=size.k, training_step="dense", dtype="float64"
        )
    )
    dense.load_state_dict(sae.state_dict())
    dense._first_batch_is_past = True
    mask = torch.zeros(size.d_sae, dtype=torch.bool)
    mask[dead_latents(size)] = True
    outputs = []
    for crosscoder, x in ((sae, batch), (dense, batch.double())):
        step_input: Any = types.SimpleNamespace(
            sae_in=x, dead_neuron_mask=mask, coefficients={}, n_training_steps=trainer.n_training_steps
        )
        output = crosscoder.training_forward_pass(step_input)
        output.loss.backward()
        outputs.append(output)
    errors = []
    for name, weights in sae.named_parameters():
        ours, exact = weights.grad, dense.get_parameter(name).grad
        errors.append(((ours - exact).abs().max() / exact.abs().max()).item())
        weights.grad = None
    with torch.no_grad():
        scores = outputs[1].feature_acts * dense.score_norms()
        clear = scores > scores[scores > 0].min() * (1 + 1e-5)
        missed = int((clear & (outputs[0].feature_acts.to_dense() == 0)).sum())
    return {"max_gradient_error": max(errors), "missed_pairs": missed}


def measure(name: str, rounds: int, checkout: str | None) -> list[dict[str, Any]]:
    """All rows of one size, measured together."""
    torch.set_num_threads(1)
    size = SIZES[name]
    batches = activations(size)
    trainers = {screening: our_trainer(size, batches, screening=screening) for screening in SCREENINGS}
    steps: dict[str, Step] = {screening: stepping(trainers[screening], size, batches) for screening in SCREENINGS}
    steps[SAE_LENS] = sae_lens_step(size, batches)
    if checkout is not None:
        steps[DICTIONARY_LEARNING] = dictionary_learning_step(size, batches, checkout)
    for screening in SCREENINGS:
        for _ in range(SETTLING_STEPS):
            steps[screening]()
    times = interleaved(steps | floors(size, batches), rounds)
    rows: list[dict[str, Any]] = []
    for index, screening in enumerate(SCREENINGS):
        exact = exactness(trainers[screening], size, batches[0])
        shared = {"screening": screening, **vars(size), **exact}
        for peer in (SAE_LENS, DICTIONARY_LEARNING):
            row = comparison(name, peer, times[screening], times.get(peer), **shared)
            target = TARGETS.get(name, {}).get(peer)
            rows.append(against_target(row, None if target is None else target[index]))
        for precision, floor in FLOORS.items():
            row = comparison(name, floor, times[screening], times[floor], **shared)
            row["times_the_floor"] = row["ours_ms"] / row["peer_ms"]
            target = FLOOR_TARGETS.get(name, {}).get(precision) if precision == screening else None
            rows.append(against_target(row, target, "times_the_floor", at_least=False))
    return rows


def memory(who: str, checkout: str | None) -> float:
    """MiB that steps at the base size hold above weights, moments and data."""
    torch.set_num_threads(1)
    size = SIZES["step/base"]
    batches = activations(size)
    if who == SAE_LENS:
        step = sae_lens_step(size, batches)
    elif who == DICTIONARY_LEARNING:
        assert checkout is not None
        step = dictionary_learning_step(size, batches, checkout)
    else:
        step = stepping(our_trainer(size, batches, screening=who), size, batches)
    step()
    with peak_memory() as peak:
        for _ in range(5):
            step()
    return peak["mib"]


def first_step_memory(screening: str) -> float:
    """MiB that the very first step holds, which knows no bound yet, moments included."""
    size = SIZES["step/base"]
    batches = activations(size)
    step = stepping(our_trainer(size, batches, screening=screening), size, batches)
    with peak_memory() as peak:
        step()
    return peak["mib"]


def memory_rows(checkout: str | None) -> list[dict[str, Any]]:
    script = __file__
    more = [] if checkout is None else ["--dictionary-learning", checkout]
    peers = {
        peer: in_child(script, ["--memory", peer, *more]) if peer == SAE_LENS or checkout else None
        for peer in (SAE_LENS, DICTIONARY_LEARNING)
    }
    rows: list[dict[str, Any]] = []
    for screening in SCREENINGS:
        ours = in_child(script, ["--memory", screening])
        first = in_child(script, ["--first-step-memory", screening])
        for peer, theirs in peers.items():
            row = {
                "name": "step/memory", "peer": peer, "screening": screening, "allocator": "default",
                "ours_mib": ours, "ours_first_step_with_moments_mib": first, "peer_mib": theirs,
                "ratio": None if theirs is None else theirs / ours,
                "status": "not measured" if theirs is None else "measured",
            }  # fmt: skip
            rows.append(against_target(row, MEMORY_TARGETS[peer]))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    choices: dict[str, Any] = {"choices": [*ROWS, *SIZES], "metavar": "ROW", "help": ", ".join(ROWS)}
    parser.add_argument("--rows", nargs="+", default=ROWS[:-1], **choices)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--dictionary-learning", metavar="CHECKOUT")
    parser.add_argument("--output", type=Path, default=Path("training_step.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--first-step-memory", help=argparse.SUPPRESS)
    args = parser.parse_args()
    checkout = args.dictionary_learning
    if args.child:
        if args.memory:
            hand_back(memory(args.memory, checkout))
        elif args.first_step_memory:
            hand_back(first_step_memory(args.first_step_memory))
        else:
            hand_back(measure(args.rows[0], args.rounds, checkout))
        return
    rows: list[dict[str, Any]] = []
    curve = [name for name in SIZES if name.startswith("curve")]
    names = [name for row in args.rows for name in (curve if row == "curve" else [row])]
    for name in names:
        if name == "step/memory":
            rows += memory_rows(checkout)
        else:
            more = [] if checkout is None else ["--dictionary-learning", checkout]
            for allocator in ALLOCATORS if name.startswith("step") else ["default"]:
                found = in_child(__file__, ["--rows", name, "--rounds", str(args.rounds), *more], allocator)
                rows += [{**row, "allocator": allocator} for row in found]
        print(name, flush=True)
        write_results(args.output, rows)


if __name__ == "__main__":
    main()
