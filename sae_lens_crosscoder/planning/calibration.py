"""How long a run will take, from a few measured steps on the devices that it will use, or from their figures."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from sae_lens.registry import get_sae_training_class
from sae_lens.util import str_to_dtype, temporary_seed

from sae_lens_crosscoder.crosscoders.sparse_step.screening import screening_precision
from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.planning.memory import bytes_of, is_dense, memory_of, n_parameters, step_bytes
from sae_lens_crosscoder.planning.scaling import Hardware, hardware_of, said, step_time
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
# A step of hardly anything, whose time is the fixed part of every step; timings wander, so at most this share of it.
_FEWEST_LATENTS, _FEWEST_TOKENS, _MOST_FIXED = 32, 8, 0.9
# What joins processes is not measured: a guess between loopback and a fast network.
_ASSUMED_LINK = {"link_bandwidth": 10e9, "latency": 1e-4}
_BYTES_TO_COPY = 64_000_000
_PROBE_SIZE = {"cpu": 512}  # of a square product
_PROBE_SIZE_ELSEWHERE = 4096


@dataclass(frozen=True)
class TimeEstimate:
    """About how long a run takes."""

    step_seconds: float
    """One step of every crosscoder."""
    harvest_seconds: float | None
    """All activations, by products alone; None when the models' sizes or devices are unknown, or they do not run."""
    n_steps: int
    how: str
    """What was measured, and what is extrapolated or given."""
    hardware: Mapping[str, Hardware]
    """What each crosscoder's steps are made on, by its name."""

    @property
    def seconds(self) -> float | None:
        """All steps and the harvest, one after the other."""
        return None if self.harvest_seconds is None else self.n_steps * self.step_seconds + self.harvest_seconds


def estimate_time(
    cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None], figures: Mapping[str, Any] | None = None
) -> TimeEstimate:
    """About how long a run takes; needs `cfg.device` here, and a few seconds of it, unless all figures are given.

    Args:
        figures: fields of a `Hardware` that are known; the others are measured, those of the link assumed.
    """
    elsewhere = hardware_of(figures or {})
    crosscoders = cfg.crosscoder_configs
    hardware = {name: elsewhere or measured_hardware(sae, cfg, figures or {}) for name, sae in crosscoders.items()}
    steps = [step_time(sae, cfg.train_batch_size_tokens, hardware[name]) for name, sae in crosscoders.items()]
    return TimeEstimate(
        step_seconds=sum(step.seconds for step in steps),
        harvest_seconds=_harvest_seconds(cfg, models) if elsewhere is None else None,
        n_steps=cfg.training_tokens // cfg.train_batch_size_tokens,
        how="; ".join(dict.fromkeys(one.source for one in hardware.values())),
        hardware=hardware,
    )


def is_here(device: str) -> bool:
    """Whether this machine has the device."""
    try:
        refuse_missing_device(device)
    except ValueError:
        return False
    return True


def measured_hardware(sae: Any, cfg: CrosscoderRunnerConfig, figures: Mapping[str, Any]) -> Hardware:
    """This machine, on which the cost model gives a measured step of this crosscoder, or of a smaller one, its time.

    Args:
        figures: those that are known, in place of measured or assumed ones.
    """
    probes = Hardware(
        flops=_flops_per_second(cfg.device, _product_dtype(sae, cfg.device)),
        memory_bandwidth=_bytes_per_second(cfg.device),
        fixed_seconds=0,
        efficiency=1,
        source="probes",
        **_ASSUMED_LINK,
    )
    whole = cfg.train_batch_size_tokens
    small, batch = _affordable(sae, whole, cfg.device, probes)
    seconds = _measured_step_seconds(small, batch, cfg)
    fewest = min(small.d_sae, max(_FEWEST_LATENTS, math.ceil(2 * getattr(small, "k", 0))))
    nothing = _measured_step_seconds(replace(small, d_sae=fewest), _FEWEST_TOKENS, cfg)
    fixed = min(nothing, _MOST_FIXED * seconds)
    how = f"measured: {_MEASURED} steps of {small.d_sae} latents on {batch} random tokens"
    if (small.d_sae, batch) == (sae.d_sae, whole):
        how += ", the real size"
    else:
        how += f", extrapolated by a cost model to {sae.d_sae} on {whole}"
    assumed = {name: value for name, value in _ASSUMED_LINK.items() if name not in figures}
    sources = [how, *([said(figures, "given")] if figures else []), *([said(assumed, "assumed")] if assumed else [])]
    measured: dict[str, Any] = {
        "fixed_seconds": fixed,
        "efficiency": step_time(small, batch, probes).seconds / (seconds - fixed),
        "source": "; ".join(sources),
    }
    return replace(probes, **{**measured, **figures})


def _product_dtype(sae: Any, device: str) -> str:
    """The precision of the encoder's product."""
    return sae.dtype if is_dense(sae) else screening_precision(sae.screening, torch.device(device))


def _affordable(sae: Any, batch: int, device: str, probes: Hardware) -> tuple[Any, int]:
    """The crosscoder and batch themselves, or smaller ones whose steps take a fraction of a second."""
    limit = _SHARE_OF_MEMORY * (memory_of(device) or math.inf)
    small = replace(sae, k_max=None, k_anneal_steps=0) if hasattr(sae, "k_max") else sae
    while step_time(small, batch, probes).seconds > _LONGEST_STEP_SECONDS or _needed(small, batch, device) > limit:
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
    if not models:
        return None
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
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)  # which need not be the current one
    else:
        torch.get_device_module(device).synchronize()
    return time.perf_counter() - start
