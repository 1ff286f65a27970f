"""The hard planted worlds with their null twins: plain BatchTopK, and the recommended recipe on the same start.

Every crosscoder is trained once; polishing continues from it. Worlds, and runs on equal worlds, are shared.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from typing import Any

import pandas as pd
import torch
from planted_training import (
    BATCH,
    D_SAE,
    EVALUATION_TOKENS,
    POOL_TOKENS,
    as_loaded,
    card_columns,
    evaluation_data,
    polished,
    trainer_config,
)

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.classes import ONE_SIDED
from sae_lens_crosscoder.analysis.diagnosis.own_probe import with_own_probe
from sae_lens_crosscoder.analysis.diagnosis.verdict import MIN_ACTIVE
from sae_lens_crosscoder.synthetic import (
    PlantedTokens,
    PlantedWorld,
    background_world,
    lora_world,
    null_world,
    score_card,
    shuffled_batches,
    truth_table,
    world_a,
)
from sae_lens_crosscoder.synthetic.scoring import SPECIFIC_BELOW


def _null(world: Callable[..., PlantedWorld]) -> Callable[..., PlantedWorld]:
    def twin(seed: int, **options: Any) -> PlantedWorld:
        return world(seed, null=True, **options)

    return twin


@dataclass(frozen=True)
class Situation:
    """A kind of world, and the k that a user guessed for it."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    """Arguments of the world and of its null twin."""
    k_over_l0: float = 1.0
    world: Callable[..., PlantedWorld] = world_a
    null: Callable[..., PlantedWorld] = null_world


SITUATIONS = (
    Situation("standard"),
    Situation("half k", k_over_l0=0.5),
    Situation("twice k", k_over_l0=2.0),
    Situation("d 32", {"d_models": (32, 32)}),
    Situation("random directions", {"directions": "random"}),
    Situation("all rare", {"probabilities": (0.002, 0.008)}),
    Situation("all frequent", {"probabilities": (0.04, 0.12)}),
    Situation("chat-only weak", {"exclusive_size": 0.7}),
    Situation("chat-only weak and rare", {"exclusive_size": 0.7, "exclusive_probability": 0.003}),
    Situation("pairs by groups", {"co_occurring": True}),
    Situation("widths 64 and 48", {"d_models": (64, 48)}),
    Situation("equal magnitudes", {"magnitude_cv": 0.0}),
    Situation("background", world=background_world, null=_null(background_world)),
    Situation("lora", world=lora_world, null=_null(lora_world)),
    Situation("use", {"less_used": True}),
    Situation("sinks", {"frac_sinks": 0.01}),
)


@dataclass(frozen=True)
class Sampled:
    """A world with the tokens that its crosscoders train on and are judged on."""

    world: PlantedWorld
    pool: torch.Tensor
    tokens: PlantedTokens

    @classmethod
    def of(cls, world: PlantedWorld, seed: int) -> "Sampled":
        pool = world.sample(POOL_TOKENS, seed=1000 + seed).activations
        return cls(world, pool, world.sample(EVALUATION_TOKENS, seed=2000 + seed))

    def data(self) -> slc.EvalData:
        """What a user would diagnose on."""
        return evaluation_data(self.world, self.tokens)


def hard_rows(seeds: Sequence[int], steps: int, names: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """Yield a row per situation, seed and recipe; null twins are judged after the recommended recipe only.

    Worlds come before null twins. A twin that equals an earlier one, k included, gets that one's row.

    Args:
        names: the situations; None for all.
    """
    situations = [situation for situation in SITUATIONS if names is None or situation.name in names]
    for seed in seeds:
        null_rows: dict[str, dict[str, Any]] = {}
        sampled: dict[str, Sampled] = {}
        for is_null, situation in product((False, True), situations):
            world = (situation.null if is_null else situation.world)(seed, **situation.options)
            key = _identity(world)
            run = f"{key} {situation.k_over_l0}"
            if is_null and run in null_rows:
                yield null_rows[run] | {"cell": situation.name}
                continue
            if key not in sampled:
                sampled = {key: Sampled.of(world, seed)}  # one at a time: it takes 700 MB
            for row in _rows(situation, seed, sampled[key], is_null, steps):
                null_rows |= {run: row} if is_null else {}
                yield row


def _identity(world: PlantedWorld) -> str:
    """Describe everything that the tokens of a world depend on, apart from the seed."""
    numbers = (world.layout.d_models, world.magnitude_cv, world.noise, world.frac_sinks)
    return repr((world.concepts, numbers, [part[0, :4].tolist() for part in world.directions]))


def _rows(situation: Situation, seed: int, sampled: Sampled, is_null: bool, steps: int) -> Iterator[dict[str, Any]]:
    world = sampled.world
    started = time.process_time()
    torch.manual_seed(seed)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=world.layout.d_models,
        d_sae=D_SAE,
        k=situation.k_over_l0 * world.l0,
        gradient_clip_norm=1.0,
        decoder_bias_init="zeros",
        topk_threshold_lr=0.01,
    )
    crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    batches = shuffled_batches(sampled.pool, BATCH, seed)
    slc.CrosscoderTrainer(trainer_config(steps), crosscoder, batches).fit()
    trained = time.process_time() - started
    about = {"cell": situation.name, "seed": seed, "is_null": is_null, "true_l0": world.l0, "k_given": cfg.k}
    if not is_null:
        yield about | _judged(crosscoder, sampled) | {"recipe": "plain", "recommended": False, "cpu_seconds": trained}
    started = time.process_time()
    better = polished(crosscoder, batches)
    seconds = {"cpu_seconds": trained + time.process_time() - started, "cpu_seconds_plain": trained}
    yield about | _judged(better, sampled) | {"recipe": "polish", "recommended": True, **seconds}


def _presence(frame: pd.DataFrame) -> dict[str, float]:
    """Return the largest presence of right one-sided latents, and the least of those of decoupled concepts."""
    frame = with_own_probe(frame[frame.label.isin(ONE_SIDED) & (frame.n_active >= MIN_ACTIVE)])
    in_other = frame.base_presence.where(frame.label == "chat_only", 1 / frame.base_presence)
    decoupled = frame[(frame.kind == "decoupled") & (in_other >= SPECIFIC_BELOW)]
    return {
        "max_presence_right": float(frame.presence[in_other < SPECIFIC_BELOW].max()),
        "min_presence_decoupled": float(decoupled.presence.min()),
        "min_nu_reconstruction_decoupled": float(decoupled.nu_reconstruction.min()),
    }


def _judged(crosscoder: slc.BatchTopKTrainingCrosscoder, sampled: Sampled) -> dict[str, Any]:
    """Diagnose on fresh tokens as a user would, and score the verdicts."""
    loaded = as_loaded(crosscoder)
    diagnosis = slc.diagnose(loaded, sampled.data())
    table = diagnosis.latents
    truth = truth_table(sampled.world, loaded, sampled.tokens)
    frame = table.join(truth)
    wrong = frame[
        ((frame.verdict == "chat_specific") & ~(frame.base_presence < SPECIFIC_BELOW))
        | ((frame.verdict == "base_specific") & ~(1 / frame.base_presence < SPECIFIC_BELOW))
    ]
    return {
        **card_columns(asdict(score_card(sampled.world, truth, table))),
        "wrong_verdict_kinds": sorted(wrong.kind.tolist()),
        **_presence(frame),
        "k": float(crosscoder.cfg.k),
        "l0": diagnosis.manifest["l0"],
        "fve_pooled": diagnosis.manifest["fve"]["pooled"],
        "fve_difference": diagnosis.manifest["fve"].get("difference"),
        "evaluation_tokens": EVALUATION_TOKENS,
        "conclusion": diagnosis.conclusion,
    }
