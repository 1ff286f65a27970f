"""What a training run holds in memory, device by device, computed from its config."""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from sae_lens.util import str_to_dtype

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.sparse_step.screening import screening_precision, tile_rows
from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

# What is alive at a step's peak, from the allocations of measured steps whose sizes were varied one at a time.
_ROWS = 5  # arrays of (batch, d_in): input, output, error, and gradients of the last two
_DENSE_ARRAYS = {"batchtopk": 6, "l1": 5}  # arrays of (batch, d_sae) when the step is dense
_REVIVAL_ROWS = 4  # more of them while dead latents are revived, and arrays of (batch, dead latents)
_REVIVAL_ARRAYS = 4
_FRAC_DEAD = 0.1  # of latents; a run with more of them needs more
_BYTES_PER_PAIR = 60  # two 8-byte indices, a value, a score, their sorted copies, and 1.3 candidates for every pair
_SAVING_COPIES = 2  # of the weights: the canonical form, and one on the way to it
_MLP_ARRAYS = 3  # of (tokens, widest layer) in a language model's block: gate, up and their product
_ATTENTION_ARRAYS = 3  # of (prompts, heads, position, position): scores, masked, pattern
_STREAM_ARRAYS = 4  # of (tokens, d_model): residual stream, its norm, the layer's output, the cached copy


@dataclass(frozen=True)
class MemoryItem:
    """One thing that memory is needed for."""

    device: str
    what: str
    n_bytes: int


def memory_items(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None]) -> list[MemoryItem]:
    """Everything a run holds at its peak; language models of unknown size are left out.

    Several crosscoders all keep their weights and moments, but take their steps, and are saved, one after another.
    """
    device = device_name(cfg.device)
    crosscoders = list(cfg.crosscoder_configs.values())
    weights = [n_parameters(sae) * bytes_of(sae.dtype) for sae in crosscoders]
    gradients, working = max(weights), max(step_bytes(sae, cfg.train_batch_size_tokens, device) for sae in crosscoders)
    # Gradients are freed before anything is saved; every crosscoder but the last is then there twice.
    saving = sum(weights) - weights[-1] + _SAVING_COPIES * weights[-1] - gradients - working
    items = [
        MemoryItem(device, "crosscoder weights", sum(weights)),
        MemoryItem(device, "gradients", gradients),
        MemoryItem(device, "Adam moments", 2 * sum(weights)),
        MemoryItem(device, "a step's arrays", working),
        MemoryItem(device, "saving, beyond a step", max(0, saving)),
        MemoryItem(device_name(cfg.act_store_device or device), "shuffling buffer", buffer_bytes(cfg)),
    ]
    places = (cfg.llm_device or cfg.device, cfg.chat_device or cfg.llm_device or cfg.device)
    passes: defaultdict[str, int] = defaultdict(int)
    for size, place in zip(models, map(device_name, places), strict=False):  # a run on cached activations has none
        if size is not None:
            n_bytes = size.n_params * bytes_of(cfg.model_dtype) + size.n_buffer_bytes
            items.append(MemoryItem(place, f"{size.name}, whole", n_bytes))
            passes[place] = max(passes[place], _pass_bytes(size, cfg))  # the models run one after the other
    items += [MemoryItem(place, "a forward pass", n_bytes) for place, n_bytes in passes.items()]
    return [item for item in items if item.n_bytes > 0]


def n_parameters(sae: Any) -> int:
    """Weights and biases of a crosscoder, from its config.

    >>> from sae_lens_crosscoder.crosscoders.l1 import L1CrosscoderTrainingConfig
    >>> n_parameters(L1CrosscoderTrainingConfig(d_model=2, d_sae=10))  # 2 * (4 * 10) + 10 + 4
    94
    """
    return 2 * sae.d_in * sae.d_sae + sae.d_sae + sae.d_in


def buffer_bytes(cfg: CrosscoderRunnerConfig) -> int:
    """The shuffling buffer, the activations that are being added to it, a batch from it, and those made ahead."""
    chunk = cfg.store_batch_size_prompts * cfg.context_size * bytes_of(cfg.model_dtype)
    batches = (1 + int(cfg.prefetch_llm_batches or 0)) * cfg.train_batch_size_tokens
    return (chunk + (cfg.n_batches_in_buffer * cfg.context_size + batches) * bytes_of(cfg.dtype)) * cfg.sae.d_in


def bytes_of(dtype: str) -> int:
    """Bytes of one number.

    >>> bytes_of("bfloat16"), bytes_of("float32")
    (2, 4)
    """
    return str_to_dtype(dtype).itemsize


def device_name(device: str) -> str:
    """One name per device.

    >>> device_name("cuda"), device_name("cuda:1"), device_name("cpu")
    ('cuda:0', 'cuda:1', 'cpu')
    """
    parsed = torch.device(device)
    return f"cuda:{parsed.index or 0}" if parsed.type == "cuda" else parsed.type


def memory_of(device: str) -> int | None:
    """Bytes of memory that a device has; None if it is not in this machine, or does not say."""
    parsed = torch.device(device)
    if parsed.type == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if parsed.type == "cuda" and (parsed.index or 0) < torch.cuda.device_count():
        return torch.cuda.get_device_properties(parsed).total_memory
    return None


def is_dense(sae: Any) -> bool:
    """Whether a step keeps arrays of (batch, d_sae); that of an L1 crosscoder does until few latents are on."""
    return sae.training_step == "dense" or not isinstance(sae, BatchTopKCrosscoderTrainingConfig)


def step_bytes(sae: Any, batch: int, device: str) -> int:
    """The most that a training step on `batch` tokens adds to weights, gradients and moments."""
    number = bytes_of(sae.dtype)
    rows = _ROWS * batch * sae.d_in * number
    dense = batch * sae.d_sae * number
    if not isinstance(sae, BatchTopKCrosscoderTrainingConfig):
        return rows + _DENSE_ARRAYS["l1"] * dense
    pairs = 0 if is_dense(sae) else int(batch * sae.k * _BYTES_PER_PAIR)
    backward = rows + pairs
    if sae.aux_loss_coefficient > 0:
        dead_latents = int(_FRAC_DEAD * sae.d_sae) * sae.d_in * number
        backward += _REVIVAL_ROWS * batch * sae.d_in * number + int(_REVIVAL_ARRAYS * _FRAC_DEAD * dense) + dead_latents
    if is_dense(sae):
        return backward + _DENSE_ARRAYS["batchtopk"] * dense
    # Screening comes before there are gradients, in the memory that they take later.
    forward = rows + pairs + _screening_bytes(sae, batch, device) - n_parameters(sae) * number
    return max(forward, backward)


def _screening_bytes(sae: Any, batch: int, device: str) -> int:
    """One tile of pre-activations with its mask, and the encoder in half precision if that is what screens."""
    kind = torch.device(device)
    in_half = screening_precision(sae.screening, kind) == "bfloat16"
    number = 2 if in_half else bytes_of(sae.dtype)
    tile = min(tile_rows(kind.type, sae.d_sae, number), batch) * sae.d_sae * (number + 1)
    return tile + (2 * sae.d_in * sae.d_sae if in_half else 0)


def _pass_bytes(size: ModelSize, cfg: CrosscoderRunnerConfig) -> int:
    """Roughly what one language model's forward pass up to the hook needs, as long as attention is not fused."""
    tokens, number = cfg.store_batch_size_prompts * cfg.context_size, bytes_of(cfg.model_dtype)
    attention = _ATTENTION_ARRAYS * tokens * cfg.context_size * size.n_heads
    logits = tokens * size.d_vocab if size.reads_logits else 0
    widest = max(_MLP_ARRAYS * tokens * size.d_widest, attention, logits)
    stacked = 2 * tokens * cfg.sae.d_in  # each model's cached activations, and both side by side
    return (_STREAM_ARRAYS * tokens * size.d_model + widest + stacked) * number
