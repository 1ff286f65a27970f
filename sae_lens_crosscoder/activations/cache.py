"""Paired activations on disk: made one model at a time, read as often as wanted."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.mixing import mixed_batches
from sae_lens_crosscoder.activations.shards import TOKENS, CacheManifest, part_path, read_part, read_tokens, sha256_of
from sae_lens_crosscoder.stacking import StackedLayout

_BATCHES_IN_BUFFER = 16
_ROWS_IN_ORDER = 2048


class ActivationCache:
    """A folder that `cache_activations` wrote, as streams of stacked activations in the precision of the cache.

    Iterating gives all activations once, in the order of the tokens, as `diagnose(activations=...)` reads them;
    `shuffled` gives training batches. Every file's size is checked at once.

    Args:
        checksums: `on_first_read` of each file, which reads it twice then, or `never`, as for a cache that passed
            `verify` before.

    Raises:
        ValueError: for a folder that is no cache, or one with missing or damaged files, which are named.
    """

    def __init__(self, path: str | Path, checksums: Literal["on_first_read", "never"] = "on_first_read") -> None:
        if checksums not in ("on_first_read", "never"):
            raise ValueError(f"checksums={checksums!r} is not one of 'on_first_read', 'never'.")
        self.path = Path(path)
        self.checksums = checksums
        self.manifest = CacheManifest.read(self.path)
        self._verified: set[Path] = set()
        for shard in range(len(self.manifest.shards)):
            for name in self.manifest.bytes_per_token:
                problem = self.manifest.part_problem(self.path, shard, name)
                if problem is not None:
                    raise ValueError(
                        f"The cache is not whole: {problem}. Call cache_activations again with the same arguments, "
                        "which writes only what is missing."
                    )

    @property
    def layout(self) -> StackedLayout:
        """Whose activation is where on the stacked axis."""
        return self.manifest.layout

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        """The id of every token, in the order in which iterating gives their activations."""
        shards = [self._part(shard, TOKENS) for shard in range(len(self.manifest.shards))]
        return torch.cat([read_tokens(path, self.manifest.shards[i].n_tokens) for i, path in enumerate(shards)])

    def __len__(self) -> int:
        """Number of tokens."""
        return self.manifest.n_tokens

    def __iter__(self) -> Iterator[Float[Tensor, "_ d_in"]]:
        for shard in range(len(self.manifest.shards)):
            parts = self._parts(shard)
            for start in range(0, len(parts[0]), _ROWS_IN_ORDER):
                yield self.layout.stack([part[start : start + _ROWS_IN_ORDER] for part in parts])

    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        buffer_size: int | None = None,
        mix_fraction: float = 0.5,
        block_size: int = 64,
        n_passes: int | None = None,
    ) -> Iterator[Float[Tensor, "batch d_in"]]:
        """Training batches: shards in random order, within each shard blocks in random order, mixed by `mixed_batches`.

        Args:
            buffer_size: tokens in the buffer; None for 16 batches, or the whole cache where that is less.
            block_size: neighbouring tokens that are read together; below 64 the disk is read in scraps.
            n_passes: passes over the cache, each in a new order; None for an endless stream.

        Raises:
            ValueError: for a cache that is smaller than a batch.
        """
        if len(self) < batch_size:
            raise ValueError(f"{self.path} has {len(self)} tokens, which do not fill one batch of {batch_size}.")
        return mixed_batches(
            self._shuffled_blocks(block_size, seed, n_passes),
            batch_size=batch_size,
            buffer_size=buffer_size or min(_BATCHES_IN_BUFFER * batch_size, len(self)),
            mix_fraction=mix_fraction,
            seed=seed,
        )

    def require_of(self, model_names: tuple[str | None, ...], hook_name: str | None) -> None:
        """Raise a ValueError unless these are the activations of the named models at this hook.

        What is not known, on either side, is taken on trust.
        """
        mine = self.manifest.model_names
        if mine is not None and None not in model_names and mine != model_names:
            raise ValueError(
                f"{self.path} holds activations of {' and '.join(mine)}, not of {' and '.join(map(str, model_names))}: "
                "a crosscoder means something on its own models' activations only."
            )
        if hook_name is not None and hook_name != self.manifest.hook_name:
            raise ValueError(f"{self.path} holds activations at {self.manifest.hook_name}, not at {hook_name}.")

    def verify(self) -> None:
        """Raise a ValueError that names the first file whose content is not what was written; reads everything."""
        for shard, written in enumerate(self.manifest.shards):
            for name in self.manifest.bytes_per_token:
                self._verify_part(part_path(self.path, shard, name), written.sha256[name])

    def _verify_part(self, path: Path, sha256: str) -> None:
        if sha256_of(path) != sha256:
            raise ValueError(
                f"{path} is damaged: its content is not what was written (SHA-256). Delete it and call "
                "cache_activations again with the same arguments, which writes it anew."
            )
        self._verified.add(path)

    def _shuffled_blocks(self, block_size: int, seed: int, n_passes: int | None) -> Iterator[Float[Tensor, "_ d_in"]]:
        generator = torch.Generator().manual_seed(seed)
        n_done = 0
        while n_passes is None or n_done < n_passes:
            for shard in torch.randperm(len(self.manifest.shards), generator=generator).tolist():
                parts = self._parts(shard)
                n_blocks = -(-len(parts[0]) // block_size)
                for block in torch.randperm(n_blocks, generator=generator).tolist():
                    rows = slice(block * block_size, (block + 1) * block_size)
                    yield self.layout.stack([part[rows] for part in parts])
            n_done += 1

    def _parts(self, shard: int) -> list[Float[Tensor, "token _"]]:
        """Each model's rows of a shard."""
        n_tokens = self.manifest.shards[shard].n_tokens
        return [
            read_part(self._part(shard, name), n_tokens, d_model, self.manifest.dtype)
            for name, d_model in zip(self.layout.names, self.layout.d_models, strict=True)
        ]

    def _part(self, shard: int, name: str) -> Path:
        """A file of a shard, checked if it is to be read for the first time."""
        path = part_path(self.path, shard, name)
        if self.checksums == "on_first_read" and path not in self._verified:
            self._verify_part(path, self.manifest.shards[shard].sha256[name])
        return path
