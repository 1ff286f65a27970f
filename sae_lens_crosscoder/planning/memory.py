"""Memory of a training run, device by device, computed from its config."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from sae_lens.util import str_to_dtype

from sae_lens_crosscoder.crosscoders.batchtopk_config import BatchTopKCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.jumprelu import JumpReLUCrosscoderTrainingConfig
from sae_lens_crosscoder.crosscoders.sparse_step.screening import screening_precision, tile_rows
from sae_lens_crosscoder.models.adapter_files import share_weights
from sae_lens_crosscoder.models.devices import device_name
from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

# Arrays alive at a step's peak, from the allocations of measured steps whose sizes were varied one at a time.
_ROWS = 5  # arrays of (batch, d_in): input, output, error, and gradients of the last two
_DENSE_ARRAYS = {"batchtopk": 6, "l1": 5, "jumprelu": 8}  # arrays of (batch, d_sae) when the step is dense
_LEVEL_ROWS = 3  # arrays of (batch, d_in) per inner level: its part, its error and their gradient
_REVIVAL_ROWS, _REVIVAL_ARRAYS = 4, 4  # more rows, and arrays of (batch, dead latents), to revive dead latents
_FRAC_DEAD = 0.1  # of latents; a run with more of them needs more
_BYTES_PER_PAIR = 60  # two 8-byte indices, a value, a score, their sorted copies, and 1.3 candidates for every pair
_MERGING_BYTES_PER_PAIR = 48  # of two groups of latents: their pairs in one list, and in the order of tokens
_SAVING_COPIES = 2  # of the weights: the canonical form, and one on the way to it
_MLP_ARRAYS = 3  # of (tokens, widest layer) in a language model's block: gate, up and their product
_ATTENTION_ARRAYS = 3  # of (prompts, heads, position, position): scores, masked, pattern
_EVAL_ARRAYS = 10  # of (tokens, vocabulary): logits of both models, side by side, for several runs
_STREAM_ARRAYS = 4  # of (tokens, d_model): residual stream, its norm, the layer's output, the cached copy


class MemoryItem(NamedTuple):
    """A use of memory on a device."""

    device: str
    name: str
    n_bytes: int


def memory_items(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None]) -> list[MemoryItem]:
    """List everything in memory at the peak of a run; language models of unknown size are left out."""
    device = device_name(cfg.device)
    crosscoders = list(cfg.crosscoder_configs.values())
    weights = [n_parameters(sae) * bytes_of(sae.dtype) for sae in crosscoders]
    gradients, working = max(weights), max(step_bytes(sae, cfg.train_batch_size_tokens, device) for sae in crosscoders)
    # Crosscoders train one after another. While they are saved, without gradients, all but the last exist twice.
    saving = sum(weights) - weights[-1] + _SAVING_COPIES * weights[-1] - gradients - working
    items = [
        MemoryItem(device, "crosscoder weights", sum(weights)),
        MemoryItem(device, "gradients", gradients),
        MemoryItem(device, "Adam moments", 2 * sum(weights)),
        MemoryItem(device, "arrays of a step", working),
        MemoryItem(device, "saving, beyond a step", max(0, saving)),
        MemoryItem(device_name(cfg.act_store_device or device), "shuffling buffer", buffer_bytes(cfg)),
    ]
    base_device = cfg.llm_device or cfg.device
    model_devices = (base_device, *[cfg.chat_device or base_device] * (len(cfg.model_names) - 1))
    is_one_copy = share_weights(cfg.model_names, model_devices)
    passes: defaultdict[str, int] = defaultdict(int)
    for m, (size, model_device) in enumerate(zip(models, map(device_name, model_devices), strict=False)):
        if size is not None:  # there are no models for a cache
            n_bytes = size.n_params * bytes_of(cfg.model_dtype) + size.n_buffer_bytes
            if m == 0 or not is_one_copy:
                items.append(MemoryItem(model_device, f"{size.name} weights", n_bytes))
            passes[model_device] = max(passes[model_device], _pass_bytes(size, cfg))  # one model runs after the other
    items += [MemoryItem(model_device, "a forward pass", n_bytes) for model_device, n_bytes in passes.items()]
    items.append(MemoryItem(device_name(model_devices[0]), "an evaluation", evaluation_bytes(cfg, models)))
    return [item for item in items if item.n_bytes > 0]


def bytes_per_device(items: Iterable[MemoryItem]) -> Counter[str]:
    """Sum of the items on each device."""
    needed: Counter[str] = Counter()
    for item in items:
        needed[item.device] += item.n_bytes
    return needed


def n_parameters(sae: Any) -> int:
    """Count weights and biases of a crosscoder, given its config."""
    thresholds = sae.d_sae * isinstance(sae, JumpReLUCrosscoderTrainingConfig)
    return 2 * sae.d_in * sae.d_sae + sae.d_sae + sae.d_in + thresholds


def buffer_bytes(cfg: CrosscoderRunnerConfig) -> int:
    """Bytes of the shuffling buffer, of activations on their way into it, and of batches made from it."""
    chunk = cfg.store_batch_size_prompts * cfg.context_size * bytes_of(cfg.model_dtype)
    batches = (1 + int(cfg.prefetch_llm_batches or 0)) * cfg.train_batch_size_tokens
    return (chunk + (cfg.n_batches_in_buffer * cfg.context_size + batches) * bytes_of(cfg.dtype)) * cfg.sae.d_in


def bytes_of(dtype: str) -> int:
    """Bytes of one number."""
    return str_to_dtype(dtype).itemsize


def step_bytes(sae: Any, batch: int, device: str) -> int:
    """Peak bytes of a training step on `batch` tokens beyond weights, gradients and moments."""
    number = bytes_of(sae.dtype)
    n_levels = len(getattr(sae, "matryoshka_widths", ()))
    rows = (_ROWS + _LEVEL_ROWS * n_levels) * batch * sae.d_in * number
    dense = batch * sae.d_sae * number
    if isinstance(sae, JumpReLUCrosscoderTrainingConfig):
        return rows + _DENSE_ARRAYS["jumprelu"] * dense
    if not isinstance(sae, BatchTopKCrosscoderTrainingConfig):  # L1 is dense until few latents are on
        return rows + _DENSE_ARRAYS["l1"] * dense
    is_dense = sae.training_step == "dense"
    pair_bytes = _BYTES_PER_PAIR + _MERGING_BYTES_PER_PAIR * (sae.partition is not None)
    pairs = 0 if is_dense else int(batch * sae.k * pair_bytes)
    backward = rows + pairs
    if sae.aux_loss_coefficient > 0:
        dead_latents = int(_FRAC_DEAD * sae.d_sae) * sae.d_in * number
        backward += _REVIVAL_ROWS * batch * sae.d_in * number + int(_REVIVAL_ARRAYS * _FRAC_DEAD * dense) + dead_latents
    if is_dense:
        return backward + _DENSE_ARRAYS["batchtopk"] * dense
    # Screening holds a tile of pre-activations with its mask, and the encoder in half precision if it computes in that,
    # before there are gradients, in the memory that they take later.
    in_half = screening_precision(sae.screening, torch.device(device)) == "bfloat16"
    screened = 2 if in_half else number
    tile = min(tile_rows(torch.device(device).type, sae.d_sae, screened), batch) * sae.d_sae * (screened + 1)
    forward = rows + pairs + tile + 2 * sae.d_in * sae.d_sae * in_half - n_parameters(sae) * number
    return max(forward, backward)


def evaluation_bytes(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None]) -> int:
    """Peak bytes of SAELens's evaluation, which keeps the logits of whole batches; 0 if the run reaches none."""
    n_rows = cfg.training_tokens // cfg.train_batch_size_tokens // cfg.logger.wandb_log_frequency
    known = [size.d_vocab for size in models if size is not None]
    if not cfg.logger.log_to_wandb or n_rows < cfg.logger.eval_every_n_wandb_logs or not known:
        return 0
    tokens = (cfg.eval_batch_size_prompts or cfg.store_batch_size_prompts) * cfg.context_size
    return _EVAL_ARRAYS * tokens * max(known) * bytes_of(cfg.model_dtype)


def _pass_bytes(size: ModelSize, cfg: CrosscoderRunnerConfig) -> int:
    """Approximate bytes of a language model's forward pass up to the hook, for attention that is not fused."""
    tokens, number = cfg.store_batch_size_prompts * cfg.context_size, bytes_of(cfg.model_dtype)
    attention = _ATTENTION_ARRAYS * tokens * cfg.context_size * size.n_heads
    logits = tokens * size.d_vocab if size.reads_logits else 0
    widest = max(_MLP_ARRAYS * tokens * size.d_widest, attention, logits)
    stacked = 2 * tokens * cfg.sae.d_in  # each model's cached activations, and both side by side
    return (_STREAM_ARRAYS * tokens * size.d_model + widest + stacked) * number
