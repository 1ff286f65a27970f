"""What each of several processes needs and sends, for every way to divide batch and latents among them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.training.edits import Capacity, bytes_per_device, overfull
from sae_lens_crosscoder.training.memory import bytes_of, n_parameters
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

# Scores that processes send for every pair that is kept.
_SENT_PER_PAIR = 1.25


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


def grid_layouts(
    cfg: CrosscoderRunnerConfig, n_processes: int, models: Sequence[ModelSize | None], capacity: Capacity
) -> list[GridLayout]:
    """Every grid of so many processes that the crosscoders' latents can be divided among, fewest slices first.

    The main memory of a machine is shared by its processes, and counted here for each of them as if it were its own.

    Raises:
        ValueError: if the batch cannot be divided evenly among the processes.
    """
    divisors = [n for n in range(1, n_processes + 1) if n_processes % n == 0]
    crosscoders = cfg.crosscoder_configs.values()
    layouts: list[GridLayout] = []
    for n_latents in (n for n in divisors if all(sae.d_sae % n == 0 for sae in crosscoders)):
        needed = dict(bytes_per_device(_as_one_sees_it(cfg, n_processes, n_latents), models))
        n_data = n_processes // n_latents
        sent = sum(step_traffic(sae, cfg.train_batch_size_tokens, n_data, n_latents) for sae in crosscoders)
        layouts.append(GridLayout(n_data, n_latents, needed, sent, not overfull(needed, capacity)))
    return layouts


def step_traffic(sae: Any, batch: int, n_data: int, n_latents: int) -> int:
    """Bytes that one process sends in a step without dead latents.

    What n processes gather takes each of them (n - 1) / n of the result, and a sum twice that.

    >>> from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig
    >>> sae = L1CrosscoderTrainingConfig(d_model=2, d_sae=10)  # 94 weights
    >>> step_traffic(sae, batch=8, n_data=2, n_latents=1)  # a sum of 94 floats and of 10 counts of 8 bytes
    456
    """
    number = bytes_of(sae.dtype)
    in_row, in_column, in_all = ((n - 1) / n for n in (n_latents, n_data, n_latents * n_data))
    activations = batch // n_data * sae.d_in * number
    own_latents = sae.d_sae // n_latents
    gradients = (n_parameters(sae) * number + 8 * sae.d_sae) * own_latents // sae.d_sae
    scores = _SENT_PER_PAIR * batch * getattr(sae, "k", 0) * number
    return int(3 * in_row * activations + 2 * in_column * gradients + in_all * scores)


def _as_one_sees_it(cfg: CrosscoderRunnerConfig, n_processes: int, n_latents: int) -> CrosscoderRunnerConfig:
    """A run of one process that holds as much: its share of the buffer, its row's batch, its column's latents."""
    share = cfg.share_of_stream(n_processes)
    share.train_batch_size_tokens *= n_latents

    def part(sae: Any) -> Any:
        own = copy.copy(sae)
        own.d_sae = sae.d_sae // n_latents  # not by a constructor, which would compare k with a part's latents
        return own

    share.sae = part(cfg.sae)
    if cfg.saes is not None:
        share.saes = {name: part(sae) for name, sae in cfg.saes.items()}
    return share
