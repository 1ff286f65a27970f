"""Estimate the time of a run from a few measured training steps on the device that will train it."""

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.util import temporary_seed

from sae_lens_crosscoder.models.devices import memory_of
from sae_lens_crosscoder.planning.memory import bytes_of, n_parameters, step_bytes
from sae_lens_crosscoder.training.loop import CrosscoderTrainer
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

_LONGEST_STEP_SECONDS = 0.5  # a slower step is measured at a smaller size
_FEWEST_TOKENS, _FEWEST_LATENTS = 128, 4096  # of a smaller size, below which other costs dominate
_WARM_UP, _MEASURED = 3, 3  # steps; the screening bound settles in the first ones
_SHARE_OF_MEMORY = 0.25  # of a device, which other programs may be using too


class TimeEstimate(NamedTuple):
    """Estimated time of one step of every crosscoder."""

    step_seconds: float
    basis: str
    """The measured sizes, and the extrapolation from them."""


def estimate_time(cfg: CrosscoderRunnerConfig) -> TimeEstimate:
    """Estimate the time of a step by training for a few seconds on `cfg.device`."""
    seconds, basis = zip(*(measure_step(sae, cfg) for sae in cfg.crosscoder_configs.values()), strict=True)
    return TimeEstimate(sum(seconds), "; ".join(dict.fromkeys(basis)))


def measure_step(sae: Any, cfg: CrosscoderRunnerConfig) -> tuple[float, str]:
    """Measure the seconds of a crosscoder's step, with a description of the measurement.

    A slow step is measured on two smaller batches and extrapolated linearly in tokens. If it is slow, or large, even on
    few tokens, fewer latents are trained, and the time is taken to be proportional to them.
    """
    batch, few = cfg.train_batch_size_tokens, min(_FEWEST_TOKENS, cfg.train_batch_size_tokens)
    limit = _SHARE_OF_MEMORY * (memory_of(cfg.device) or math.inf)
    small = replace(sae, k_max=None, k_anneal_steps=0) if hasattr(sae, "k_max") else sae

    def fits(tokens: int) -> bool:
        return 4 * n_parameters(small) * bytes_of(sae.dtype) + step_bytes(small, tokens, cfg.device) <= limit

    while True:
        is_smallest = small.d_sae < 2 * _FEWEST_LATENTS
        seconds = _step_seconds(small, few, cfg) if is_smallest or fits(4 * few) else math.inf
        if is_smallest or seconds <= _LONGEST_STEP_SECONDS / 4:
            break
        small = replace(small, d_sae=small.d_sae // 2)
    more = min(batch, few * max(4, int(_LONGEST_STEP_SECONDS / seconds)))
    while more > 4 * few and not fits(more):
        more //= 2
    longer = _step_seconds(small, more, cfg)
    if more < batch:
        longer += max(0.0, longer - seconds) * (batch - more) / (more - few)
    batches = more if more == batch else f"{few} and on {more}"
    basis = f"measured: {_MEASURED} steps of {small.d_sae:,} latents on {batches} random tokens"
    if (more, small.d_sae) != (batch, sae.d_sae):
        basis += f", extrapolated linearly to {sae.d_sae:,} latents and {batch:,} tokens"
    return longer * sae.d_sae / small.d_sae, basis


def _step_seconds(sae: Any, batch: int, cfg: CrosscoderRunnerConfig) -> float:
    sae_class, _ = get_sae_training_class(sae.architecture())
    constant: dict[str, Any] = {"lr_scheduler_name": "constant", "lr_warm_up_steps": 0, "lr_decay_steps": 0}
    constant |= {"n_checkpoints": 0, "checkpoint_path": None, "total_training_samples": 1000 * batch}
    trainer_cfg = replace(cfg.to_sae_trainer_config(), train_batch_size_samples=batch, **constant)
    with temporary_seed(cfg.seed):
        crosscoder: Any = sae_class(replace(sae, device=cfg.device)).to(cfg.device)
        trainer = CrosscoderTrainer(trainer_cfg, crosscoder, iter(()))
        batches = 3 * [torch.randn(batch, sae.d_in, device=cfg.device) for _ in range((_WARM_UP + _MEASURED) // 3)]
        seconds = [_seconds(partial(trainer.step, x), cfg.device) for x in batches]
    return statistics.median(seconds[_WARM_UP:])


def _seconds(work: Callable[[], object], device: str) -> float:
    """Seconds until the device has finished the work."""
    start = time.perf_counter()
    work()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)  # which need not be the current one
    else:
        torch.get_device_module(device).synchronize()
    return time.perf_counter() - start
