"""The command `cache`."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_crosscoder.activations.cache.rows import CacheDtype
from sae_lens_crosscoder.cli.train_flags import train_parser
from sae_lens_crosscoder.training.data.run_cache import InMemory, write_run_cache


@dataclass
class CacheOptions:
    """Flags beside the run's config."""

    cache_dtype: CacheDtype = "bfloat16"
    """Precision on disk. `int8` has a scale per row and source, and takes half of the space."""
    prompts_per_shard: int | None = None
    """Contexts in one file; by default about 65,536 tokens."""
    worker: int = 0
    """Number of this worker, counted from 0: each writes every n-th shard, and all may run at once."""
    n_workers: int = 1
    """Number of processes that write this cache, each started by this command with its own `worker`."""
    in_memory: InMemory = "one_model"
    """`both_models` finishes one shard after another, for training that waits for them (--wait-for-cache)."""


def run(args: Sequence[str]) -> None:
    """Write a run's activations to its `cached_activations_path`; run again to write missing shards."""
    parsed = train_parser("cache", CacheOptions).parse_args(args)
    options = parsed.options
    worker = (options.worker, options.n_workers)
    caches = write_run_cache(
        parsed.cfg, options.cache_dtype, options.prompts_per_shard, worker, in_memory=options.in_memory
    )
    if options.n_workers > 1:
        print(f"worker {options.worker} of {options.n_workers} has written its shards of")
    for cache in caches:
        print(f"{cache.path}: {len(cache):,} tokens, {cache.manifest.n_bytes / 1e9:.3g} GB")
