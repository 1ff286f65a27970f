"""Times a crosscoder over two hooks beside one crosscoder per hook, and counts the layers it names on planted concepts.

python benchmarks/layers.py --output benchmarks/results/layers.json

The pair is random, of 12 layers and width 128, read at two hooks. `harvest` reads both at once beside a pass per hook.
`step` trains one BatchTopK crosscoder over both hooks beside two of the same number of latents at one hook each, which
have as many parameters together; `memory` is the peak of these steps with gradients and moments. Every round runs all
of them. `planted` trains weakly causal and acausal crosscoders on concepts that start at a known layer, and polishes
the former: how many are found, and how many of those by a latent that reads the layer at which they start.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
from harness import against_target, comparison, hand_back, in_child, interleaved, peak_memory
from patching import random_model
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.variance import VarianceExplained
from sae_lens_crosscoder.synthetic import LayeredWorld, layers_found, shuffled_batches

HOOKS = ["blocks.5.hook_resid_post", "blocks.9.hook_resid_post"]
JOINED = "+".join(HOOKS)
D_MODEL, D_SAE, K, BATCH, N_PROMPTS, N_POS = 128, 4096, 32, 1024, 16, 64
PEER = "one hook at a time"
TARGET_RIGHT = 0.95


def trainer(hooks: list[str] | None) -> Any:
    """A trainer of one crosscoder of two models, at one hook or at several."""
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=D_MODEL, hook_names=hooks, d_sae=D_SAE, k=K)
    settings = {"total_training_samples": 2**30, "train_batch_size_samples": BATCH, "max_norm_ratio": None}
    return slc.CrosscoderTrainer(
        slc.CrosscoderTrainerConfig(**settings), slc.BatchTopKTrainingCrosscoder(cfg), iter(())
    )


def measure_harvest(rounds: int) -> list[dict[str, Any]]:
    pair = slc.HookedModelPair(random_model(seed=1), random_model(seed=2))
    tokens = torch.randint(0, 4096, (N_PROMPTS, N_POS), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        joined = pair.activations(tokens, JOINED)
        base_and_chat = [pair.activations(tokens, hook).split(D_MODEL, dim=-1) for hook in HOOKS]
        assert torch.equal(joined, torch.cat([parts[m] for m in (0, 1) for parts in base_and_chat], dim=-1))
        functions = {
            "ours": lambda: pair.activations(tokens, JOINED),
            PEER: lambda: [pair.activations(tokens, hook) for hook in HOOKS],
        }
        times = interleaved(functions, rounds)
    return [comparison("harvest", PEER, times["ours"], times[PEER])]


def measure_step(rounds: int) -> list[dict[str, Any]]:
    x = torch.randn(BATCH, 4 * D_MODEL, generator=torch.Generator().manual_seed(0))
    base_early, base_late, chat_early, chat_late = x.split(D_MODEL, dim=-1)
    separate = [torch.cat(parts, dim=-1) for parts in ((base_early, chat_early), (base_late, chat_late))]
    joint, apart = trainer(HOOKS), [trainer(None), trainer(None)]
    functions = {
        "ours": lambda: joint.step(x),
        PEER: lambda: [each.step(part) for each, part in zip(apart, separate, strict=True)],
    }
    times = interleaved(functions, rounds)
    return [comparison("step", PEER, times["ours"], times[PEER])]


def measure_memory(which: str) -> dict[str, float]:
    """Peak MiB of three steps from nothing: weights, gradients, moments and what a step needs."""
    torch.zeros(8).sum()
    with peak_memory() as peak:
        trainers = [trainer(HOOKS)] if which == "ours" else [trainer(None), trainer(None)]
        for each in trainers:
            for _ in range(3):
                each.step(torch.randn(BATCH, each.sae.cfg.d_in))
    return peak


def measure_planted(seed: int, causality: str, n_steps: int) -> list[dict[str, Any]]:
    """Train on planted concepts; weakly causal ones are polished as well."""
    world = LayeredWorld(seed=seed)
    torch.manual_seed(seed)
    n_concepts = len(world.starts)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=world.layout.d_models,
        hook_names=world.layout.hook_names,
        causality=causality,  # pyright: ignore[reportArgumentType]
        d_sae=2 * n_concepts,
        k=n_concepts * world.firing_probability,
    )
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=n_steps * 256,
        train_batch_size_samples=256,
        lr=5e-3,
        lr_warm_up_steps=20,
        lr_decay_steps=n_steps // 5,
        dead_feature_window=50,
        log_frequency=n_steps,
        max_norm_ratio=None,
    )
    batches = shuffled_batches(world.sample(64_000, seed=1).activations, 256, seed=0)
    training = slc.CrosscoderTrainer(trainer_cfg, slc.BatchTopKTrainingCrosscoder(cfg), batches)
    trained, tokens = training.fit(), world.sample(8192, seed=2).activations
    versions = {causality: trained}
    if causality == "weak":
        polish = slc.training.PolishConfig(lr=1e-3, max_norm_ratio=None)
        versions["weak, polished"] = slc.training.polish(trained, batches, polish)
    rows: list[dict[str, Any]] = []
    for name, crosscoder in versions.items():
        row = {"name": "planted", "seed": seed, "causality": name, "n_concepts": n_concepts}
        row |= found_layers(crosscoder, world) | {"fve": explained(crosscoder, tokens)}
        rows.append(against_target(row, TARGET_RIGHT if causality == "weak" else None, "frac_right"))
    return rows


def found_layers(crosscoder: Any, world: LayeredWorld) -> dict[str, float]:
    """Shares of concepts that are found, and of those at the layer at which they start."""
    with tempfile.TemporaryDirectory() as folder:
        crosscoder.save_inference_model(folder)
        table = layers_found(slc.load(folder), world)
    return {"frac_found": float(table["found"].mean()), "frac_right": float(table[table["found"]]["right"].mean())}


@torch.no_grad()
def explained(crosscoder: Any, tokens: torch.Tensor) -> float:
    variance = VarianceExplained(crosscoder.layout)
    variance.add(tokens, crosscoder(tokens))
    return variance.pooled()


def measured(name: str, rounds: int, seeds: list[int]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    if name == "harvest":
        return measure_harvest(rounds)
    if name == "step":
        return measure_step(rounds)
    if name.startswith("memory"):
        return [measure_memory(name.removeprefix("memory/"))]
    kinds = [(seed, causality) for seed in seeds for causality in ("weak", "acausal")]
    return [row for kind in kinds for row in measure_planted(*kind, n_steps=500)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", type=Path, default=Path("layers.json"))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        hand_back(measured(args.child, args.rounds, args.seeds))
        return
    options = ["--rounds", str(args.rounds), "--seeds", *map(str, args.seeds)]
    rows = [row for name in ("harvest", "step") for row in in_child(__file__, [name, *options])]
    peaks = {which: in_child(__file__, [f"memory/{which}", *options])[0]["mib"] for which in ("ours", PEER)}
    rows.append({"name": "memory", "peer": PEER, "ours_mib": peaks["ours"], "peer_mib": peaks[PEER]})
    rows += in_child(__file__, ["planted", *options])
    write_results(args.output, rows, hooks=HOOKS, d_model=D_MODEL, d_sae=D_SAE, k=K, batch=BATCH)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
