"""`cache`: a run's activations, written to disk before training."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_crosscoder.activations.shards import CacheDtype
from sae_lens_crosscoder.cli.flags import parser, train_config_class
from sae_lens_crosscoder.training.run_cache import write_run_cache


@dataclass
class CacheConfig:
    """How activations are written, beside the run's own fields."""

    cache_dtype: CacheDtype = "bfloat16"
    """Precision on disk."""
    prompts_per_shard: int | None = None
    """Contexts in one file; by default about 65,536 tokens."""


def run(args: Sequence[str]) -> None:
    """Write a run's activations to cached_activations_path, with one model in memory; again to go on."""
    parsed = parser("cache", cfg=train_config_class(), options=CacheConfig).parse_args(args)
    options = parsed.options
    for cache in write_run_cache(parsed.cfg, options.cache_dtype, options.prompts_per_shard):
        print(f"{cache.path}: {len(cache):,} tokens, {cache.manifest.n_bytes / 1e9:.3g} GB")
