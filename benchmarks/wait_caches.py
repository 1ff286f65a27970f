"""Rows of waits.py about caches: the time of writing and reading one, and what int8 keeps."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from cache_path import D_MODEL, Disk
from harness import interleaved

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache.manifest import TOKEN_DTYPE
from sae_lens_crosscoder.activations.cache.rows import CacheDtype, Int8Rows, bytes_of_row, stored_rows
from sae_lens_crosscoder.synthetic import shuffled_batches
from sae_lens_crosscoder.synthetic.worlds import world_a

PEER = "float32 numpy memmap"
D_SAE, BATCH, N_STEPS = 256, 512, 800
MOST_BYTES, LEAST_EQUAL, MOST_FVE = 0.52, 0.995, 0.002


@contextmanager
def _disk() -> Iterator[Disk]:
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a temporary folder may be in memory
        yield Disk(Path(folder))


def times(rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall milliseconds of writing 262,144 tokens and reading them all with checksums, by what does it."""
    import time

    measured: dict[str, list[tuple[float, float]]] = {"bfloat16": [], "int8": [], PEER: []}
    with _disk() as disk:

        def timed(name: str) -> None:
            cpu, wall = time.process_time(), time.perf_counter()
            disk.plain(checksums=False) if name == PEER else disk.ours("on_first_read", name)  # pyright: ignore[reportArgumentType]
            measured[name].append(((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3))

        interleaved({name: lambda name=name: timed(name) for name in measured}, rounds, warm_up=1)
    return {name: kept[-rounds:] for name, kept in measured.items()}


def _as_read(activations: torch.Tensor, widths: tuple[int, ...], dtype: CacheDtype) -> torch.Tensor:
    """What a cache of this precision gives back."""
    parts = [stored_rows(part, (part.shape[1],), dtype) for part in activations.split(list(widths), dim=-1)]
    if dtype == "int8":
        parts = [Int8Rows(part, (width,))[:] for part, width in zip(parts, widths, strict=True)]
    return torch.cat(parts, dim=-1).float()


def _trained(architecture: str, activations: torch.Tensor, widths: tuple[int, ...], k: float) -> Any:
    torch.manual_seed(0)
    if architecture == "L1":
        cfg: Any = slc.L1CrosscoderTrainingConfig(d_models=widths, d_sae=D_SAE, l1_coefficient=0.3)
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
    trainer = slc.CrosscoderTrainer(trainer_cfg, crosscoder, shuffled_batches(activations, BATCH, seed=0))
    with tempfile.TemporaryDirectory() as folder:
        trainer.fit().save_inference_model(folder)
        return slc.load(folder)


def int8_figures() -> dict[str, Any]:
    """Shares of latents with equal classes and verdicts, and differences of FVE, against float32."""
    world = world_a(seed=0)
    widths = world.layout.d_models
    training, held_out = (world.sample(n, seed).activations for n, seed in ((20_000, 1), (8192, 2)))
    width = (D_MODEL,)
    ids = TOKEN_DTYPE.itemsize
    sizes = {dtype: 2 * bytes_of_row(width, dtype) + ids for dtype in ("int8", "bfloat16")}
    figures: dict[str, Any] = {"bytes_ratio": sizes["int8"] / sizes["bfloat16"]}
    for architecture in ("BatchTopK", "L1"):
        crosscoders = {
            dtype: _trained(architecture, _as_read(training, widths, dtype), widths, world.l0)
            for dtype in ("float32", "bfloat16", "int8")
        }
        exact = _diagnosed(crosscoders["float32"], held_out)
        read = _diagnosed(crosscoders["float32"], _as_read(held_out, widths, "int8"))
        figures |= {f"{architecture}_{name}_read": value for name, value in _compared(exact, read).items()}
        for dtype in ("bfloat16", "int8"):
            anew = _compared(exact, _diagnosed(crosscoders[dtype], held_out))
            figures |= {f"{architecture}_{name}_trained_{dtype}": value for name, value in anew.items()}
    return figures


def _diagnosed(crosscoder: Any, activations: torch.Tensor) -> tuple[Any, float]:
    table = slc.diagnose(crosscoder, slc.EvalData(activations=activations, max_norm_ratio=None)).latents
    with torch.no_grad():
        error = (crosscoder(activations) - activations).square().sum()
    return table, 1 - float(error / (activations - activations.mean(dim=0)).square().sum())


def _compared(exact: tuple[Any, float], other: tuple[Any, float]) -> dict[str, float]:
    shares = {f"equal_{name}": float((exact[0][name] == other[0][name]).mean()) for name in ("label", "verdict")}
    return {**shares, "fve_difference": abs(exact[1] - other[1])}
