"""ActivationCache: paired activations on disk, read in order or as shuffled training batches."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.cache.manifest import (
    CONTEXTS_FILENAME,
    MANIFEST_FILENAME,
    TOKEN_DTYPE,
    TOKENS,
    CacheManifest,
    contexts_sha256,
    load_token_ids,
    part_path,
)
from sae_lens_crosscoder.activations.cache.rows import Rows, load_rows
from sae_lens_crosscoder.activations.cache.shuffled_blocks import ShuffledBlocks
from sae_lens_crosscoder.activations.shuffle_buffer import MixedBatches, mixed_batches
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.checksums import file_sha256, mismatch
from sae_lens_crosscoder.storage.names import printable_names
from sae_lens_crosscoder.storage.tensor_files import load_tensors

_BATCHES_IN_BUFFER = 16
_ROWS_IN_ORDER = 2048
_POLL_SECONDS = 0.2


class ActivationCache:
    """Streams of stacked activations from a folder that `cache_activations` wrote, in the cache's precision, or float32
    if that is int8.

    Iterating yields all activations once, in the order of the tokens, as analyses read them; `shuffled` returns
    training batches. The size of every file is checked at once.

    Args:
        checksums: `on_first_read` to verify each file when it is first read, which reads it twice; `never` for a cache
            that passed `verify` before.
        wait: seconds to wait, since the last new file, for a file that is not written yet; 0 for a complete cache.

    Raises:
        ValueError: for a folder that is not a cache, or with missing or corrupted files; while reading, for a file that
            did not appear in time.
    """

    def __init__(
        self, path: str | Path, checksums: Literal["on_first_read", "never"] = "on_first_read", wait: float | int = 0
    ) -> None:
        if not wait >= 0:
            raise ValueError(f"wait={wait} must be a number of seconds, at least 0 (do not wait).")
        if checksums not in ("on_first_read", "never"):
            raise ValueError(f"checksums={checksums!r} is not one of 'on_first_read', 'never'.")
        self.path = Path(path)
        self.checksums = checksums
        self.wait = wait
        self.manifest = self._manifest_with(lambda manifest: True, self.path / MANIFEST_FILENAME)
        self._verified: set[Path] = set()
        for shard, written in enumerate(self.manifest.shards):
            for name in self.manifest.bytes_per_token:
                if wait == 0 or name in written.sha256:
                    self._validate_part(shard, name)

    @property
    def layout(self) -> StackedLayout:
        """The sources' slices of the stacked axis."""
        return self.manifest.layout

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        """The id of every token, in the order in which iterating yields the activations."""
        shards = [self._part(shard, TOKENS) for shard in range(len(self.manifest.shards))]
        return torch.cat([load_token_ids(path, self.manifest.shards[i].n_tokens) for i, path in enumerate(shards)])

    @property
    def contexts(self) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """The contexts of the cached tokens, and a mask that is False for tokens that were left out.

        Raises:
            ValueError: if tokens were left out and the file with the mask is missing or corrupted.
        """
        cached, file = self.tokens, self.path / CONTEXTS_FILENAME  # written before the last of the tokens
        if file.exists():
            stored, _ = load_tensors(file)
            dtypes = {name: tensor.dtype for name, tensor in stored.items()}
            if dtypes != {"tokens": TOKEN_DTYPE, "token_mask": torch.bool}:
                raise ValueError(f"{file} contains {printable_names(dtypes)}, which are not this cache's contexts.")
            tokens, token_mask = stored["tokens"].long(), stored["token_mask"]
        else:  # no token was left out, which the checksum confirms
            context_size = self.manifest.context_size
            n_whole = len(self) // context_size * context_size
            tokens = rearrange(cached[:n_whole], "(batch pos) -> batch pos", pos=context_size)
            token_mask = torch.ones_like(tokens, dtype=torch.bool)
        is_complete = tokens.shape == token_mask.shape == (len(tokens), self.manifest.context_size)
        if not is_complete or contexts_sha256(tokens, token_mask) != self.manifest.tokens_sha256:
            raise ValueError(
                f"{file} is missing or corrupted, so the contexts of the tokens are unknown. Delete it if it exists "
                "and call cache_activations again with the same arguments, which writes only that file."
            )
        return tokens, token_mask

    def __len__(self) -> int:
        """Number of tokens."""
        return self.manifest.n_tokens

    def __iter__(self) -> Iterator[Float[Tensor, "_ d_in"]]:
        for shard in range(len(self.manifest.shards)):
            parts = self.parts(shard)
            for start in range(0, len(parts[0]), _ROWS_IN_ORDER):
                yield self.layout.of_models.stack([part[start : start + _ROWS_IN_ORDER] for part in parts])

    @validate_arguments
    def shuffled(
        self,
        batch_size: int,
        *,
        seed: int = 0,
        buffer_size: int | None = None,
        mix_fraction: float = 0.5,
        block_size: int = 64,
        n_passes: int | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> MixedBatches:
        """Training batches: shards in random order, blocks of a shard in random order, mixed by `mixed_batches`.

        With `wait`, the first pass reads the shards in their order instead, so that training can start with the first;
        it also does so when all files exist, so that the batches are the same.

        Args:
            batch_size: tokens per batch.
            buffer_size: tokens in the buffer; None for 16 batches, or for the whole cache if that is less.
            block_size: neighbouring tokens that are read together; fewer than 64 make reading slow.
            n_passes: passes over the cache, each in a new order; None for an endless stream.
            part: (i, n) for the i-th of n disjoint streams, counted from 0, that together read every block.

        Raises:
            ValueError: for a cache that is smaller than a batch.
        """
        if len(self) < batch_size:
            raise ValueError(f"{self.path} has {len(self)} tokens, fewer than one batch of {batch_size}.")
        return mixed_batches(
            ShuffledBlocks(self.manifest, self.path, self.parts, block_size, seed, n_passes, part, self.wait > 0),
            batch_size=batch_size,
            buffer_size=buffer_size or min(_BATCHES_IN_BUFFER * batch_size, len(self)),
            mix_fraction=mix_fraction,
            seed=seed,
        )

    @validate_arguments
    def validate_source(self, model_names: tuple[str | None, ...], hook_name: str | None) -> None:
        """Raise a ValueError unless these are the named models' activations at this hook; None is not checked."""
        names = self.manifest.model_names
        if names is not None and None not in model_names and names != model_names:
            raise ValueError(
                f"{self.path} holds activations of {' and '.join(names)}, not of {' and '.join(map(str, model_names))}."
                " Use a cache of the models that the crosscoder was trained on."
            )
        if hook_name is not None and hook_name != self.manifest.hook_name:
            raise ValueError(f"{self.path} holds activations at {self.manifest.hook_name}, not at {hook_name}.")

    def verify(self) -> None:
        """Read all files and raise a ValueError that names the first one whose checksum does not match."""
        for shard in range(len(self.manifest.shards)):
            for name in self.manifest.bytes_per_token:
                self._verify_part(self._written(shard, name), shard, name)

    def _verify_part(self, path: Path, shard: int, name: str) -> None:
        if file_sha256(path) != self.manifest.shards[shard].sha256[name]:
            remedy = "Delete it and call cache_activations again with the same arguments, which writes it again."
            raise ValueError(mismatch(path, remedy))
        self._verified.add(path)

    @validate_arguments
    def parts(self, shard: int) -> list[Rows]:
        """Each model's rows of a shard, at all hooks, verified when they are first read; index them by a slice."""
        n_tokens, models = self.manifest.shards[shard].n_tokens, self.manifest.widths
        written = [self._written(shard, name) for name in models]
        with ThreadPoolExecutor(max_workers=len(models)) as threads:  # hashing leaves Python's lock alone
            paths = list(threads.map(self._verified_on_first_read, written, [shard] * len(models), models))
        return [
            load_rows(path, n_tokens, widths, self.manifest.dtype)
            for path, widths in zip(paths, models.values(), strict=True)
        ]

    def _part(self, shard: int, name: str) -> Path:
        """Path of a shard's file, verified if it is read for the first time."""
        return self._verified_on_first_read(self._written(shard, name), shard, name)

    def _verified_on_first_read(self, path: Path, shard: int, name: str) -> Path:
        if self.checksums == "on_first_read" and path not in self._verified:
            self._verify_part(path, shard, name)
        return path

    def _written(self, shard: int, name: str) -> Path:
        """Path of a shard's file, once it is written."""
        path = part_path(self.path, shard, name)
        if name not in self.manifest.shards[shard].sha256:
            self.manifest = self._manifest_with(lambda manifest: name in manifest.shards[shard].sha256, path)
            self._validate_part(shard, name)
        return path

    def _validate_part(self, shard: int, name: str) -> None:
        problem = self.manifest.part_problem(self.path, shard, name)
        if problem is not None:
            raise ValueError(
                f"Incomplete cache: {problem}. Call cache_activations again with the same arguments, which writes only "
                "missing files."
            )

    def _manifest_with(self, is_enough: Callable[[CacheManifest], bool], awaited: Path) -> CacheManifest:
        """The folder's manifest, once it satisfies the condition; writers replace it after every file."""
        n_files, deadline = -1, 0.0
        while True:
            exists = self.wait == 0 or (self.path / MANIFEST_FILENAME).exists()
            manifest = CacheManifest.load(self.path) if exists else None
            if manifest is not None and is_enough(manifest):
                return manifest
            n_written = 0 if manifest is None else sum(len(shard.sha256) for shard in manifest.shards)
            if n_written > n_files:
                n_files, deadline = n_written, time.monotonic() + self.wait
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"{awaited} is not written yet, and no file of the cache was written for {self.wait:g} s. Check "
                    "that its worker is running; restart it to write the missing files, and resume training with "
                    "resume_from_checkpoint. Slower workers need a longer wait."
                )
            time.sleep(min(_POLL_SECONDS, self.wait))
