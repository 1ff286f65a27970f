"""`cache`: a run's activations, written to disk before training."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_crosscoder.activations.cache.manifest import CacheDtype
from sae_lens_crosscoder.cli.flags import parser, train_config_class
from sae_lens_crosscoder.training.data.run_cache import InMemory, write_run_cache


@dataclass
class CacheConfig:
    """How activations are written, beside the run's own fields."""

    cache_dtype: CacheDtype = "bfloat16"
    """Precision on disk."""
    prompts_per_shard: int | None = None
    """Contexts in one file; by default about 65,536 tokens."""
    worker: int = 0
    """Which of n_workers this is, counted from 0: each writes every n-th shard, and they may run at once."""
    n_workers: int = 1
    """Processes that write this cache, each started by this command with its own `worker`."""
    in_memory: InMemory = "one_model"
    """`both_models` finishes one shard after another, for training that waits for them (wait_for_cache)."""


def run(args: Sequence[str]) -> None:
    """Write a run's activations to cached_activations_path, alone or as one of several workers; again to go on."""
    parsed = parser("cache", cfg=train_config_class(), options=CacheConfig).parse_args(args)
    options = parsed.options
    worker = (options.worker, options.n_workers)
    written = write_run_cache(
        parsed.cfg, options.cache_dtype, options.prompts_per_shard, worker, in_memory=options.in_memory
    )
    if options.n_workers > 1:
        print(f"worker {options.worker} of {options.n_workers}: its share is written of")
    for cache in written:
        print(f"{cache.path}: {len(cache):,} tokens, {cache.manifest.n_bytes / 1e9:.3g} GB")
