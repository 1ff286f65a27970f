"""What an activation cache in int8 changes: bytes, classes, verdicts and variance explained, on a planted world.

Classes follow from a crosscoder's weights. So they are compared for one crosscoder diagnosed on what either cache
gives back, and for crosscoders trained anew on it, on three orders of the same tokens. Beside these, crosscoders
trained in float32 on another of these orders say how much of a difference is chance.
"""

import statistics
import tempfile
from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache.manifest import TOKEN_DTYPE
from sae_lens_crosscoder.activations.cache.rows import CacheDtype, Int8Rows, bytes_of_row, stored_rows
from sae_lens_crosscoder.synthetic import shuffled_batches, world_a

D_SAE, BATCH, N_STEPS, ORDERS = 256, 512, 1500, (0, 1, 2)
MOST_BYTES, LEAST_EQUAL, MOST_FVE = 0.52, 0.995, 0.002
ARCHITECTURES = ("BatchTopK", "L1")
Diagnosed = tuple[pd.DataFrame, float]
"""Table of latents, and variance explained."""


def as_read(activations: torch.Tensor, widths: tuple[int, ...], dtype: CacheDtype) -> torch.Tensor:
    """What a cache of this precision gives back."""
    parts = [stored_rows(part, (part.shape[1],), dtype) for part in activations.split(list(widths), dim=-1)]
    if dtype == "int8":
        parts = [Int8Rows(part, (width,))[:] for part, width in zip(parts, widths, strict=True)]
    return torch.cat(parts, dim=-1).float()


def trained(architecture: str, activations: torch.Tensor, widths: tuple[int, ...], k: float, order: int = 0) -> Any:
    """A crosscoder trained on activations in the order of a seed, from the same start."""
    torch.manual_seed(0)
    if architecture == "L1":
        cfg: Any = slc.L1CrosscoderTrainingConfig(d_models=widths, d_sae=D_SAE, l1_coefficient=0.1)
        crosscoder: Any = slc.L1TrainingCrosscoder(cfg)
    else:
        cfg = slc.BatchTopKCrosscoderTrainingConfig(d_models=widths, d_sae=D_SAE, k=k, topk_threshold_lr=0.01)
        crosscoder = slc.BatchTopKTrainingCrosscoder(cfg)
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=N_STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=2e-3 if architecture == "L1" else 5e-3,
        lr_warm_up_steps=15,
        lr_decay_steps=N_STEPS // 4,
        max_norm_ratio=None,
    )
    trainer = slc.CrosscoderTrainer(trainer_cfg, crosscoder, shuffled_batches(activations, BATCH, seed=order))
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit().save_inference_model(folder)
        return slc.load(folder)


def int8_figures(d_model: int) -> dict[str, Any]:
    """Shares of latents with equal classes and verdicts, and differences of FVE, against float32, by architecture.

    Args:
        d_model: width of the models whose caches' bytes are compared.
    """
    world = world_a(seed=0)
    widths = world.layout.d_models
    training, held_out = (world.sample(n, seed).activations for n, seed in ((60_000, 1), (20_000, 2)))
    sizes = {dtype: 2 * bytes_of_row((d_model,), dtype) + TOKEN_DTYPE.itemsize for dtype in ("int8", "bfloat16")}
    figures: dict[str, Any] = {"bytes_ratio": sizes["int8"] / sizes["bfloat16"]}
    for architecture in ARCHITECTURES:

        def runs(dtype: CacheDtype, architecture: str = architecture) -> list[Any]:
            rows = training if dtype == "float32" else as_read(training, widths, dtype)
            return [trained(architecture, rows, widths, world.l0, order) for order in ORDERS]

        float32 = runs("float32")
        exact = [_diagnosed(crosscoder, held_out) for crosscoder in float32]
        others = {
            "read": [_diagnosed(crosscoder, as_read(held_out, widths, "int8")) for crosscoder in float32],
            "trained": [_diagnosed(crosscoder, held_out) for crosscoder in runs("int8")],
            "trained_bfloat16": [_diagnosed(crosscoder, held_out) for crosscoder in runs("bfloat16")],
            "other_order": [*exact[1:], exact[0]],
        }
        figures.setdefault("fve", {})[architecture] = statistics.mean(fve for _, fve in exact)
        for kind, each in others.items():
            for name, value in _compared(exact, each).items():
                figures.setdefault(f"{name}_{kind}", {})[architecture] = value
    return figures


def _compared(exact: Sequence[Diagnosed], others: Sequence[Diagnosed]) -> dict[str, float]:
    """Means over runs: shares of latents with equal classes and verdicts, and the FVE's difference with its size."""
    pairs = list(zip(exact, others, strict=True))
    differences = [other - fve for (_, fve), (_, other) in pairs]
    return {
        "classes_equal": statistics.mean(float((a.label == b.label).mean()) for (a, _), (b, _) in pairs),
        "verdicts_equal": statistics.mean(float((a.verdict == b.verdict).mean()) for (a, _), (b, _) in pairs),
        "fve_difference": abs(statistics.mean(differences)),
        "fve_spread": statistics.mean(map(abs, differences)),
    }


def _diagnosed(crosscoder: Any, activations: torch.Tensor) -> Diagnosed:
    table = slc.diagnose(crosscoder, slc.EvalData(activations=activations, max_norm_ratio=None)).latents
    with torch.no_grad():
        error = (crosscoder(activations) - activations).square().sum()
    return table, 1 - float(error / (activations - activations.mean(dim=0)).square().sum())
