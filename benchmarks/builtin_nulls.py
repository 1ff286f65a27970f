"""Null runs of the built-in pair: crosscoders of null pairs that `null_family` makes, on text of its language."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_dataset

KINDS = ("jittered", "split_halves")
HALVES = ("tiny-base", "tiny-null")
"""The base model, and the same trained longer on its own corpus."""
N_PER_KIND = 2
N_ROWS = {"train": 500, "held out": 250}
BATCH, STEPS = 256, 400


@dataclass(frozen=True)
class BuiltinNull:
    """A crosscoder of a null pair, with held-out activations."""

    kind: str
    crosscoder: Any
    activations: torch.Tensor
    seconds: float
    """CPU seconds of the harvest and the training."""


def recipe() -> slc.training.TrainingRecipe:
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=256, k=8, gradient_clip_norm=1.0)
    trainer = slc.CrosscoderTrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=3e-3,
        lr_warm_up_steps=STEPS // 20,
        lr_decay_steps=STEPS // 5,
    )
    return slc.training.TrainingRecipe(cfg, trainer)


def builtin_family(seed: int) -> Iterator[BuiltinNull]:
    """Yield the null runs of one family, each trained on its own text."""
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat", "tiny-null")
    family = slc.workflows.null_family(pair, KINDS, n_per_kind=N_PER_KIND, halves=HALVES, seed=seed)
    for index, null in enumerate(family.pairs):
        started = time.process_time()
        train, held_out = (
            null.activations(torch.tensor(tiny_dataset(n, seed=100 * seed + 10 * index + part)["input_ids"]), TINY_HOOK)
            for part, n in enumerate(N_ROWS.values())
        )
        batches = slc.activations.DrawnBatches(train, BATCH, seed=seed)
        crosscoder = recipe().train(batches, seed=seed + index)
        crosscoder.cfg.metadata.null_kind = null.kind
        yield BuiltinNull(null.kind, crosscoder, held_out, time.process_time() - started)
