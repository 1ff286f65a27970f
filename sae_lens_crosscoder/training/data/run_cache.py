"""A run's activations on disk: written once, by the config that trains on them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from datasets import IterableDataset
from jaxtyping import Bool, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.cache.manifest import MANIFEST_FILENAME
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.cache.rows import CacheDtype
from sae_lens_crosscoder.activations.cache.writer import cache_activations, validate_worker
from sae_lens_crosscoder.activations.pair_check import PairCheck
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.token_mask import TokenRule
from sae_lens_crosscoder.models.adapter_files import share_weights
from sae_lens_crosscoder.models.loading import load_tokenizer
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.storage.notes import write_note
from sae_lens_crosscoder.training.data.run_answers import run_answers, sources_of_answers
from sae_lens_crosscoder.training.data.run_rows import RunRows
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

TRAINING, HELD_OUT = "training", "held_out"
InMemory = Literal["one_model", "both_models"]
# What, beside models and hook, decides which activations there are.
_DATA_FIELDS = (
    "dataset_path",
    "mix",
    "use_chat_formatting",
    "context_size",
    "packing",
    "padding_token",
    "prepend_bos",
    "sequence_separator_token",
    "disable_concat_sequences",
    "seqpos_slice",
    "exclude_special_tokens",
    "exclude_constant_prefix",
    "n_held_out_rows",
    "seed",
)


@validate_arguments
def write_run_cache(
    cfg: CrosscoderRunnerConfig,
    dtype: CacheDtype = "bfloat16",
    prompts_per_shard: int | None = None,
    worker: tuple[int, int] = (0, 1),
    in_memory: InMemory = "one_model",
) -> tuple[ActivationCache, ActivationCache]:
    """Write a run's training and held-out activations to `cfg.cached_activations_path`.

    They are `training_tokens` of its data, or one pass over it if that is less, and all held-out rows, which come
    first. Before anything is written, the models are compared on the first held-out contexts, as before training. An
    interrupted call can be repeated: it writes what is missing.

    Args:
        worker: (i, n) for the i-th of n calls that share the work, see `cache_activations`.
        in_memory: `one_model`: each model is loaded in turn, and no shard is complete before the chat model's turn
            (models that share one copy of their weights are loaded together all the same);
            `both_models`: shard after shard is finished, for training that waits for them.

    Raises:
        ValueError: for what the run itself would refuse, and what `cache_activations` refuses.
    """
    if cfg.cached_activations_path is None:
        raise ValueError("cached_activations_path is not set: set it to the folder for the activations.")
    validate_worker(worker)
    if in_memory not in get_args(InMemory):
        raise ValueError(f"in_memory={in_memory!r} is not one of {', '.join(get_args(InMemory))}.")
    names = cfg.model_names
    loading: dict[str, Any] = {
        "device": cfg.llm_device or cfg.device,
        "dtype": cfg.model_dtype,
        "model_class_name": cfg.model_class_name,
        "token_replacements": cfg.token_replacements,
        **(cfg.model_from_pretrained_kwargs or {}),
    }

    def load_pair() -> HookedModelPair:
        options: dict[str, Any] = {"chat_device": cfg.chat_device, "align_tokens": cfg.align_tokens, **loading}
        return HookedModelPair.from_pretrained(*names, **options)

    answers, tokenizer = None, load_tokenizer(cfg.model_names[-1], cfg.model_class_name)
    if sources_of_answers(cfg):
        answers = run_answers(cfg, tokenizer, None, load_pair, worker)
    rows = RunRows(cfg, tokenizer=tokenizer, answers=answers)
    rule = TokenRule.from_config(cfg, tokenizer)
    devices = (loading["device"], *[cfg.chat_device or loading["device"]] * (len(names) - 1))
    at_once = in_memory == "both_models" or cfg.align_tokens or share_weights(names, devices)
    models = load_pair() if at_once else names
    options: dict[str, Any] = {
        "dtype": dtype,
        "dataset": json.dumps(_data_of(cfg)),
        "prompts_per_shard": prompts_per_shard,
        "batch_size": cfg.store_batch_size_prompts,
        "loading": None if at_once else loading,
        "worker": worker,
    }

    def write(name: str, part: IterableDataset, n_wanted: int | None) -> ActivationCache:
        aligned = models.aligned if isinstance(models, HookedModelPair) else None
        tokens, token_mask = _contexts(part, rule, aligned, n_wanted)
        folder = Path(str(cfg.cached_activations_path), name)
        return cache_activations(folder, models, tokens, cfg.hook_name, token_mask=token_mask, **options)

    held_out = write(HELD_OUT, rows.held_out, None)
    if held_out.manifest.pair_check is not None:
        write_note(PairCheck.from_dict(held_out.manifest.pair_check).lines())
    return write(TRAINING, rows.training, cfg.training_tokens), held_out


def load_run_cache(cfg: CrosscoderRunnerConfig) -> tuple[ActivationCache, ActivationCache]:
    """Load the training and held-out activations from the cache that the config names.

    Raises:
        ValueError: for a folder without a complete cache, unless the config waits for it, and for one of other models,
            another hook or other data.
    """
    folder = Path(cfg.cached_activations_path or "")
    if cfg.wait_for_cache and not (folder / TRAINING / MANIFEST_FILENAME).exists():
        # Held-out files are written first, and each of them begins the wait for the training manifest anew.
        ActivationCache(folder / HELD_OUT, wait=cfg.wait_for_cache).verify()
    training, held_out = (ActivationCache(folder / name, wait=cfg.wait_for_cache) for name in (TRAINING, HELD_OUT))
    for cache in (training, held_out):
        cache.validate_source(cfg.model_names, cfg.hook_name)
        stored: dict[str, Any] = json.loads(cache.manifest.dataset or "{}")
        wanted: dict[str, Any] = json.loads(json.dumps(_data_of(cfg)))
        different = sorted(name for name in wanted if stored.get(name) != wanted[name])
        if cache.manifest.token_replacements != cfg.token_replacements:
            different.append("token_replacements")
        if different:
            raise ValueError(
                f"{cache.path} contains activations of other data: its config differs in {', '.join(different)}. Use "
                "the config that wrote it, or write another cache."
            )
    return training, held_out


def _data_of(cfg: CrosscoderRunnerConfig) -> dict[str, Any]:
    settings = cfg.to_dict()
    alignment = {"align_tokens": True} if cfg.align_tokens else {}  # which older caches do not know
    return {name: settings[name] for name in _DATA_FIELDS} | alignment


def _contexts(
    rows: IterableDataset, rule: TokenRule, aligned: Callable[[Tensor], Tensor] | None, n_wanted: int | None
) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
    """As many contexts as hold the wanted number of tokens that are kept, and which those are.

    Args:
        aligned: True for tokens that all models have, if the models have different tokenizers.
    """
    contexts: list[Tensor] = []
    masks: list[Tensor] = []
    n_kept = 0
    with tqdm(total=n_wanted, desc="Reading tokens", unit="tok", unit_scale=True, leave=False) as bar:
        for row in rows:
            context = torch.tensor(row["input_ids"], dtype=torch.int32)
            mask = rule.mask(context[None])
            masks.append(mask if aligned is None else mask & aligned(context[None]))
            n_here = int(masks[-1].sum())
            contexts.append(context)
            n_kept += n_here
            bar.update(n_here)
            if n_wanted is not None and n_kept >= n_wanted:
                break
    return torch.stack(contexts), torch.cat(masks)
