"""How long a run will take, from a few measured steps and products on the devices that it will use."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.util import str_to_dtype, temporary_seed

from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.training.memory import bytes_of, is_dense, memory_of, n_parameters, step_bytes
from sae_lens_crosscoder.training.refusals import refuse_missing_device
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.trainer import CrosscoderTrainer

# A step that would take longer is measured in small, on no fewer tokens than this while latents can be left out.
_LONGEST_STEP_SECONDS = 0.5
_SMALL_BATCH = 128
# Warm-up steps let the screening bound settle.
_WARM_UP, _MEASURED = 3, 3
# What is measured uses at most this share of a device, which others may be using too.
_SHARE_OF_MEMORY = 0.25
# The cost model: how often a step goes over each parameter (gradient, its norm, and Adam's reads and writes), over
# each active pair's row of weights, and, when dense, over each number of a (batch, d_sae) array.
_PASSES_OVER_PARAMETERS, _PASSES_OVER_PAIRS, _PASSES_OVER_DENSE = 11, 5, 10
_PRODUCTS = {"sparse": 1, "dense": 5}
_BYTES_TO_COPY = 64_000_000
_PROBE_SIZE = {"cpu": 512}  # of a square product
_PROBE_SIZE_ELSEWHERE = 4096


@dataclass(frozen=True)
class TimeEstimate:
    """About how long a run takes."""

    step_seconds: float
    """One step of every crosscoder."""
    harvest_seconds: float | None
    """All activations, by products alone; None when the language models' sizes or devices are unknown."""
    n_steps: int
    how: str
    """What was measured, and what is extrapolated."""

    @property
    def seconds(self) -> float | None:
        """All steps and the harvest, one after the other."""
        return None if self.harvest_seconds is None else self.n_steps * self.step_seconds + self.harvest_seconds


@dataclass(frozen=True)
class _Rates:
    flops: float
    n_bytes: float


def estimate_time(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None]) -> TimeEstimate:
    """About how long a run takes; needs `cfg.device` here, and a few seconds of it."""
    rates = _Rates(_flops_per_second(cfg.device, "float32"), _bytes_per_second(cfg.device))
    measured = [_step_seconds(sae, cfg, rates) for sae in cfg.crosscoder_configs.values()]
    return TimeEstimate(
        step_seconds=sum(seconds for seconds, _ in measured),
        harvest_seconds=_harvest_seconds(cfg, models),
        n_steps=cfg.training_tokens // cfg.train_batch_size_tokens,
        how="; ".join(dict.fromkeys(how for _, how in measured)),
    )


def is_here(device: str) -> bool:
    """Whether this machine has the device."""
    try:
        refuse_missing_device(device)
    except ValueError:
        return False
    return True


def step_cost(sae: Any, batch: int, rates: _Rates) -> float:
    """Seconds of a step by the cost model, of which only ratios between sizes are used."""
    n, dense = batch * sae.d_in, is_dense(sae)
    flops = 2 * n * sae.d_sae * _PRODUCTS["dense" if dense else "sparse"]
    passed = _PASSES_OVER_PARAMETERS * n_parameters(sae)
    passed += _PASSES_OVER_DENSE * batch * sae.d_sae if dense else _PASSES_OVER_PAIRS * n * sae.k
    return flops / rates.flops + passed * bytes_of(sae.dtype) / rates.n_bytes


def _step_seconds(sae: Any, cfg: CrosscoderRunnerConfig, rates: _Rates) -> tuple[float, str]:
    """Seconds of one crosscoder's step, and how that is known."""
    whole = cfg.train_batch_size_tokens
    small, batch = _affordable(sae, whole, cfg.device, rates)
    seconds = _measured_step_seconds(small, batch, cfg)
    what = f"{_MEASURED} steps of {small.d_sae} latents on {batch} random tokens"
    if (small.d_sae, batch) == (sae.d_sae, whole):
        return seconds, f"measured: {what}, the real size"
    ratio = step_cost(sae, whole, rates) / step_cost(small, batch, rates)
    return seconds * ratio, f"measured: {what}; extrapolated by a cost model to {sae.d_sae} on {whole}: {ratio:.3g} x"


def _affordable(sae: Any, batch: int, device: str, rates: _Rates) -> tuple[Any, int]:
    """The crosscoder and batch themselves, or smaller ones whose steps take a fraction of a second."""
    limit = _SHARE_OF_MEMORY * (memory_of(device) or math.inf)
    small = replace(sae, k_max=None, k_anneal_steps=0) if hasattr(sae, "k_max") else sae
    while step_cost(small, batch, rates) > _LONGEST_STEP_SECONDS or _needed(small, batch, device) > limit:
        if batch > _SMALL_BATCH:  # first, as weights that fit into a cache would make pairs look cheap
            batch //= 2
        elif small.d_sae >= 8 * max(getattr(small, "k", 1), 32):
            small = replace(small, d_sae=small.d_sae // 2)
        else:
            break
    return small, batch


def _needed(sae: Any, batch: int, device: str) -> int:
    """Bytes for weights, gradients, moments and a step."""
    return 4 * n_parameters(sae) * bytes_of(sae.dtype) + step_bytes(sae, batch, device)


def _measured_step_seconds(sae: Any, batch: int, cfg: CrosscoderRunnerConfig) -> float:
    sae_class, _ = get_sae_training_class(sae.architecture())
    trainer_cfg = replace(
        cfg.to_sae_trainer_config(),
        train_batch_size_samples=batch,
        total_training_samples=1000 * batch,
        lr_scheduler_name="constant",
        lr_warm_up_steps=0,
        lr_decay_steps=0,
        n_checkpoints=0,
        checkpoint_path=None,
    )
    with temporary_seed(cfg.seed):
        crosscoder: Any = sae_class(replace(sae, device=cfg.device)).to(cfg.device)
        trainer = CrosscoderTrainer(trainer_cfg, crosscoder, iter(()))
        batches = 3 * [torch.randn(batch, sae.d_in, device=cfg.device) for _ in range((_WARM_UP + _MEASURED) // 3)]
        seconds = [_seconds(partial(trainer.step, x), cfg.device) for x in batches]
    return statistics.median(seconds[_WARM_UP:])


def _harvest_seconds(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None]) -> float | None:
    """Seconds of products in both models, which is less than harvesting takes."""
    places = (cfg.llm_device or cfg.device, cfg.chat_device or cfg.llm_device or cfg.device)
    seconds = 0.0
    for size, place in zip(models, places, strict=True):
        if size is None or not is_here(place):
            return None
        flops = 2 * size.n_params_to_hook * cfg.training_tokens
        seconds += flops / _flops_per_second(place, cfg.model_dtype)
    return seconds


def _flops_per_second(device: str, dtype: str) -> float:
    size = _PROBE_SIZE.get(torch.device(device).type, _PROBE_SIZE_ELSEWHERE)
    matrix = torch.ones(size, size, dtype=str_to_dtype(dtype), device=device)
    return 2 * size**3 / _best_seconds(lambda: matrix @ matrix, device)


def _bytes_per_second(device: str) -> float:
    source = torch.ones(_BYTES_TO_COPY // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _BYTES_TO_COPY / _best_seconds(lambda: target.copy_(source), device)


def _best_seconds(work: Callable[[], object], device: str) -> float:
    return min(_seconds(work, device) for _ in range(3))


def _seconds(work: Callable[[], object], device: str) -> float:
    """Seconds that some work takes, on the device's clock of finished work."""
    start = time.perf_counter()
    work()
    torch.get_device_module(device).synchronize()
    return time.perf_counter() - start
