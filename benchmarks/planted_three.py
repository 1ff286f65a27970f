"""Crosscoders of three planted models: are concepts that emerge, persist and vanish told apart?

python benchmarks/planted_three.py --seeds 0 1 --output benchmarks/results/planted_three.json
"""

import argparse
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from planted_training import BATCH, D_SAE, EVALUATION_TOKENS, POOL_TOKENS, as_loaded, polished, trainer_config
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic import PlantedTokens, PlantedWorld, family_world, shuffled_batches, truth_table
from sae_lens_crosscoder.synthetic.scoring import MIN_HIT_RATE

WIDTHS = ((64, 64, 64), (64, 48, 64))
PAIRS = (("model_0", "model_1"), ("model_1", "model_2"), ("model_0", "model_2"))
STEPS = 2500
VERDICTS = {"emerge": ("chat_specific", "chat_only"), "vanish": ("base_specific", "base_only")}


def trained_on(world: PlantedWorld, seed: int) -> slc.crosscoders.InferenceCrosscoder:
    """Train BatchTopK with k at the number of concepts per token, and polish."""
    torch.manual_seed(seed)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=world.layout.d_models,
        d_sae=D_SAE,
        k=world.l0,
        gradient_clip_norm=1.0,
        decoder_bias_init="zeros",
        topk_threshold_lr=0.01,
    )
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    batches = shuffled_batches(world.sample(POOL_TOKENS, seed=1000 + seed).activations, BATCH, seed)
    slc.CrosscoderTrainer(trainer_config(STEPS), crosscoder, batches).fit()
    return as_loaded(polished(crosscoder, batches))


def scores(
    world: PlantedWorld, crosscoder: slc.crosscoders.InferenceCrosscoder, tokens: PlantedTokens, models: tuple[str, str]
) -> dict[str, Any]:
    """Precision and recall of emerging, persisting and vanishing concepts between two of the models."""
    data = slc.EvalData(activations=tokens.activations)
    diagnosis = slc.diagnose(crosscoder, data, models=models)
    truth = truth_table(world, crosscoder, tokens, models=models)
    frame = diagnosis.latents.join(truth)
    kinds = pd.Series([concept.kind for concept in world.of(*map(crosscoder.layout.names.index, models)).concepts])
    row: dict[str, Any] = {"nu_kind": frame.nu_kind.iloc[0], "n_undefined": int((frame.verdict == "undefined").sum())}
    persists = {"persist": ("shared", "shared")}
    for name, (verdict, kind) in (VERDICTS | persists).items():
        called = frame[frame.verdict == verdict]
        right = called[called.kind == kind]
        found = set(right.concept[right.hit_rate >= MIN_HIT_RATE])
        row[f"n_{name}"] = len(called)
        row[f"precision_{name}"] = len(right) / len(called) if len(called) else None
        row[f"recall_{name}"] = len(found) / int((kinds == kind).sum()) if (kinds == kind).any() else None
    return row


def rows(seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Yield a row for every seed, width and two of the models, and for the null twin of the first seed."""
    worlds = [(seed, widths, False) for seed in seeds for widths in WIDTHS]
    for seed, widths, null in [*worlds, (seeds[0], WIDTHS[0], True)]:
        world = family_world(seed, null=null, d_models=widths)
        crosscoder = trained_on(world, seed)
        tokens = world.sample(EVALUATION_TOKENS, seed=2000 + seed)
        for models in PAIRS:
            about = {"seed": seed, "widths": list(widths), "null": null, "models": list(models)}
            yield about | scores(world, crosscoder, tokens, models)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measured: list[dict[str, Any]] = []
    for row in rows(arguments.seeds):
        measured.append(row)
        print(row, flush=True)
    write_results(arguments.output, measured)


if __name__ == "__main__":
    main()
