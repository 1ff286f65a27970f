"""Designated shared latents and the delta loss of Delta-Crosscoders, as prototypes.

python benchmarks/shared_latents.py --seeds 0 --output benchmarks/results/shared_latents.json
"""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from planted_training import (
    BATCH,
    D_SAE,
    EVALUATION_TOKENS,
    POOL_TOKENS,
    as_loaded,
    card_columns,
    evaluation_data,
    trainer_config,
)
from results_file import write_results
from typing_extensions import override

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.scores import score_norms
from sae_lens_crosscoder.synthetic import PlantedWorld, score_card, shuffled_batches, truth_table, world_a

STEPS = 2500
SITUATIONS: dict[str, tuple[Callable[[int], PlantedWorld], float]] = {
    "standard": (world_a, 1.0),
    "half k": (world_a, 0.5),
}
RECIPES = {
    "shared latents": (D_SAE // 2, 0.0),
    "delta loss": (0, 1.0),
    "shared latents and delta loss": (D_SAE // 2, 1.0),
}
"""Number of designated shared latents, and weight of the delta loss."""
PREFERENCE = 2.0
"""Factor on the scores of shared latents, in place of Anthropic's weaker penalty."""


class SharedLatents(slc.BatchTopKTrainingCrosscoder):
    """BatchTopK whose first latents write the same to both models, and which may weigh the difference's error."""

    n_shared, delta = 0, 0.0

    def tied(self, rows: torch.Tensor) -> torch.Tensor:
        """Decoder with the mean of both halves in the shared latents' rows."""
        shared = rows[: self.n_shared].unflatten(1, (2, -1)).mean(dim=1)
        return torch.cat([torch.cat([shared, shared], dim=1), rows[self.n_shared :]])

    @override
    def trainable_rows(self, rows: torch.Tensor, confinement: Any) -> torch.Tensor:
        return self.tied(rows) if rows is self.W_dec else super().trainable_rows(rows, confinement)

    @override
    def score_norms(self) -> torch.Tensor:
        norms = score_norms(self.tied(self.W_dec), self.layout, self.cfg.score)
        return torch.cat([PREFERENCE * norms[: self.n_shared], norms[self.n_shared :]])

    @override
    def auxiliary_losses(self, code: Any, W_dec: torch.Tensor, step_input: Any, sae_out: torch.Tensor) -> Any:
        losses = super().auxiliary_losses(code, W_dec, step_input, sae_out)
        base, chat = self.layout.split(step_input.sae_in - sae_out)
        return losses | {"delta_loss": self.delta * (chat - base).square().sum(dim=-1).mean()}


def run(situation: str, recipe: str, seed: int) -> dict[str, Any]:
    """Train, diagnose on fresh tokens, score against the truth."""
    world_of, k_over_l0 = SITUATIONS[situation]
    world = world_of(seed)
    torch.manual_seed(seed)
    crosscoder = SharedLatents(
        slc.BatchTopKCrosscoderTrainingConfig(
            d_models=world.layout.d_models,
            d_sae=D_SAE,
            k=k_over_l0 * world.l0,
            gradient_clip_norm=1.0,
            decoder_bias_init="zeros",
            topk_threshold_lr=0.01,
        )
    )
    crosscoder.n_shared, crosscoder.delta = RECIPES[recipe]
    batches = shuffled_batches(world.sample(POOL_TOKENS, seed=1000 + seed).activations, BATCH, seed)
    slc.CrosscoderTrainer(trainer_config(STEPS), crosscoder, batches).fit()
    crosscoder.W_dec.data = crosscoder.tied(crosscoder.W_dec.data)
    loaded = as_loaded(crosscoder)
    tokens = world.sample(EVALUATION_TOKENS, seed=2000 + seed)
    diagnosis = slc.diagnose(loaded, evaluation_data(world, tokens))
    card = score_card(world, truth_table(world, loaded, tokens), diagnosis.latents)
    about = {"cell": f"{situation}, {recipe}", "seed": seed, "fve_pooled": diagnosis.manifest["fve"]["pooled"]}
    return about | card_columns(asdict(card))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for situation in SITUATIONS:
            for recipe in RECIPES:
                rows.append(run(situation, recipe, seed))
                print(rows[-1], flush=True)
                write_results(args.output, rows, steps=STEPS, preference=PREFERENCE)


if __name__ == "__main__":
    main()
