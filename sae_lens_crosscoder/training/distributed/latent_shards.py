"""Divides a crosscoder's latents into shards, and puts the shards together again."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

LATENT_AXIS = {"W_enc": 1, "W_dec": 0, "b_enc": 0}
"""The axis of the latents in the weights that have one; every process has all of the other weights."""


def shard_of(whole: Any, shard: int, n_shards: int) -> Any:
    """Return one shard of a crosscoder's latents as a crosscoder; `k` stays that of the whole crosscoder."""
    if whole.cfg.d_sae % n_shards:
        raise ValueError(f"d_sae={whole.cfg.d_sae} cannot be divided by latent_shards={n_shards}: use a multiple.")
    if n_shards > 1 and not whole.cfg.has_latent_shards:
        raise ValueError(
            f"latent_shards={n_shards} is not available for a {whole.cfg.architecture()}: use 1, and divide the batch."
        )
    if whole.cfg.training_step == "dense":
        raise ValueError("training_step='dense' runs in one process only: use 'sparse' for several.")
    weights = whole.state_dict()
    parts = {name: weights[name].chunk(n_shards, dim=axis)[shard] for name, axis in LATENT_AXIS.items()}
    part = _with_latents(whole, whole.cfg.d_sae // n_shards, whole.cfg.device)
    part.load_state_dict(weights | parts)
    return part.to(whole.device)


def unshard(part: Any, gather: Callable[[Tensor], list[Tensor]], n_shards: int) -> Any:
    """Put all shards together on the CPU; None for `n_shards=0`.

    Args:
        gather: returns a tensor's parts from all processes, in order; an empty list on processes that receive nothing.
    """
    weights = {name: tensor.cpu() for name, tensor in part.state_dict().items()}
    parts = {name: gather(weights[name].contiguous()) for name in LATENT_AXIS}
    if n_shards == 0:
        return None
    whole = _with_latents(part, part.cfg.d_sae * n_shards, "cpu")
    whole.load_state_dict(weights | {name: torch.cat(parts[name], dim=axis) for name, axis in LATENT_AXIS.items()})
    return whole


def _with_latents(crosscoder: Any, d_sae: int, device: str) -> Any:
    cfg = copy.deepcopy(crosscoder.cfg)
    cfg.d_sae, cfg.device = d_sae, device  # not by a constructor, which would compare k with a part's latents
    return type(crosscoder)(cfg)
