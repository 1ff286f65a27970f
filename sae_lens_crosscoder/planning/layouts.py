"""What each of several processes needs, sends and takes, for every way to divide batch and latents among them."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.planning.edits import Capacity, bytes_per_device, overfull
from sae_lens_crosscoder.planning.scaling import Hardware, StepTime, in_turn, step_time, step_traffic
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig


@dataclass(frozen=True)
class GridLayout:
    """A grid of processes, as one of them sees it."""

    n_data: int
    """Into how many parts every batch is divided."""
    n_latents: int
    """`latent_shards`: into how many slices the latents are divided."""
    n_bytes_needed: dict[str, int]
    """Memory at the peak, on each device that the process uses."""
    n_bytes_sent: int
    """In one step of every crosscoder, by the algorithms that send least (rings)."""
    fits: bool
    """Whether no device is known to have too little."""
    time: StepTime | None
    """Seconds of one step of every crosscoder; None when nothing is known of the hardware."""


def grid_layouts(
    cfg: CrosscoderRunnerConfig,
    n_processes: int,
    models: Sequence[ModelSize | None],
    capacity: Capacity,
    hardware: Mapping[str, Hardware],
) -> list[GridLayout]:
    """Every grid of so many processes that the crosscoders' latents can be divided among, fewest slices first.

    The main memory of a machine is shared by its processes, and counted here for each of them as if it were its own.

    Args:
        hardware: what each crosscoder's steps are made on, by its name; empty when nothing is known of it.

    Raises:
        ValueError: if the batch cannot be divided evenly among the processes.
    """
    divisors = [n for n in range(1, n_processes + 1) if n_processes % n == 0]
    crosscoders, batch = cfg.crosscoder_configs.values(), cfg.train_batch_size_tokens
    layouts: list[GridLayout] = []
    for n_latents in (n for n in divisors if all(sae.d_sae % n == 0 for sae in crosscoders)):
        needed = dict(bytes_per_device(_as_one_sees_it(cfg, n_processes, n_latents), models))
        n_data = n_processes // n_latents
        sent = sum(step_traffic(sae, batch, n_data, n_latents) for sae in crosscoders)
        times = [
            step_time(sae, batch, hardware[name], n_data, n_latents)
            for name, sae in cfg.crosscoder_configs.items()
            if name in hardware
        ]
        fits = not overfull(needed, capacity)
        layouts.append(GridLayout(n_data, n_latents, needed, sent, fits, in_turn(times) if times else None))
    return layouts


def _as_one_sees_it(cfg: CrosscoderRunnerConfig, n_processes: int, n_latents: int) -> CrosscoderRunnerConfig:
    """A run of one process that holds as much: its share of the buffer, its row's batch, its column's latents.

    Active pairs are spread evenly over the latents.
    """
    share = cfg.share_of_stream(n_processes)
    share.train_batch_size_tokens *= n_latents

    def part(sae: Any) -> Any:
        own = copy.copy(sae)
        own.d_sae = sae.d_sae // n_latents  # not by a constructor, which would compare k with a part's latents
        if isinstance(sae, BatchTopKCrosscoderTrainingConfig):
            own.k = sae.k / n_latents
        return own

    share.sae = part(cfg.sae)
    if cfg.saes is not None:
        share.saes = {name: part(sae) for name, sae in cfg.saes.items()}
    return share
