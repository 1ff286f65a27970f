"""Paired activations on disk: made one model at a time, read as often as wanted."""

import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.activations.cache.manifest import (
    CONTEXTS_FILENAME,
    MANIFEST_FILENAME,
    TOKENS,
    CacheManifest,
    contexts_sha256,
    part_path,
    read_part,
    read_tokens,
)
from sae_lens_crosscoder.activations.shuffle_buffer import MixedBatches, mixed_batches
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.checksums import blaming, file_sha256
from sae_lens_crosscoder.storage.tensor_files import load_tensors

_BATCHES_IN_BUFFER = 16
_ROWS_IN_ORDER = 2048
_POLL_SECONDS = 0.2


class ActivationCache:
    """A folder that `cache_activations` wrote, as streams of stacked activations in the precision of the cache.

    Iterating gives all activations once, in the order of the tokens, as `diagnose(activations=...)` reads them;
    `shuffled` gives training batches. Every file's size is checked at once.

    Args:
        checksums: `on_first_read` of each file, which reads it twice then, or `never`, as for a cache that passed
            `verify` before.
        wait: seconds without any new file for which reading waits when it comes to one that is still to be written;
            0 for a cache that must be whole.

    Raises:
        ValueError: for a folder that is no cache, or one with missing or damaged files, which are named; when reading,
            for a file that was waited for in vain.
    """

    def __init__(
        self, path: str | Path, checksums: Literal["on_first_read", "never"] = "on_first_read", wait: float | int = 0
    ) -> None:
        if not wait >= 0:
            raise ValueError(f"wait={wait} must be a number of seconds, or 0 not to wait for files.")
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
                    self._refuse_problem(shard, name)

    @property
    def layout(self) -> StackedLayout:
        """Whose activation is where on the stacked axis."""
        return self.manifest.layout

    @property
    def tokens(self) -> Int[Tensor, " token"]:
        """The id of every token, in the order in which iterating gives their activations."""
        shards = [self._part(shard, TOKENS) for shard in range(len(self.manifest.shards))]
        return torch.cat([read_tokens(path, self.manifest.shards[i].n_tokens) for i, path in enumerate(shards)])

    @property
    def contexts(self) -> tuple[Int[Tensor, "batch pos"], Bool[Tensor, "batch pos"]]:
        """The contexts that the tokens come from, and which of their tokens are here: the others were left out.

        Raises:
            ValueError: where tokens were left out and the file that says which is missing or damaged.
        """
        kept, file = self.tokens, self.path / CONTEXTS_FILENAME  # which is written before the last of the tokens
        if file.exists():
            stored, _ = load_tensors(file)
            with blaming(file):
                tokens, token_mask = stored["tokens"].long(), stored["token_mask"]
        else:  # whole contexts, as the checksum tells
            n_contexts, context_size = len(self) // self.manifest.context_size, self.manifest.context_size
            tokens = kept[: n_contexts * context_size].view(n_contexts, context_size)
            token_mask = torch.ones_like(tokens, dtype=torch.bool)
        is_whole = tokens.shape == token_mask.shape == (len(tokens), self.manifest.context_size)
        if not is_whole or contexts_sha256(tokens, token_mask) != self.manifest.tokens_sha256:
            raise ValueError(
                f"{file} is missing or damaged, so that nobody knows which contexts the tokens are from: delete it if "
                "it is there and call cache_activations again with the same arguments, which writes only that file."
            )
        return tokens, token_mask

    def __len__(self) -> int:
        """Number of tokens."""
        return self.manifest.n_tokens

    def __iter__(self) -> Iterator[Float[Tensor, "_ d_in"]]:
        for shard in range(len(self.manifest.shards)):
            parts = self.parts(shard)
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
        part: tuple[int, int] = (0, 1),
    ) -> MixedBatches:
        """Training batches: shards in random order, within each shard blocks in random order, mixed by `mixed_batches`.

        Of a cache that waits for its files, the first pass takes the shards in their order instead, so that training
        can begin with the first; it does so also when all are there, and the batches are the same.

        Args:
            buffer_size: tokens in the buffer; None for 16 batches, or the whole cache where that is less.
            block_size: neighbouring tokens that are read together; below 64 the disk is read in scraps.
            n_passes: passes over the cache, each in a new order; None for an endless stream.
            part: (i, n) for the i-th of n streams, counted from 0, that have each block of the cache in one of them.

        Raises:
            ValueError: for a cache that is smaller than a batch.
        """
        if len(self) < batch_size:
            raise ValueError(f"{self.path} has {len(self)} tokens, which do not fill one batch of {batch_size}.")
        return mixed_batches(
            _ShuffledBlocks(self, block_size, seed, n_passes, part),
            batch_size=batch_size,
            buffer_size=buffer_size or min(_BATCHES_IN_BUFFER * batch_size, len(self)),
            mix_fraction=mix_fraction,
            seed=seed,
        )

    def validate_source(self, model_names: tuple[str | None, ...], hook_name: str | None) -> None:
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
        for shard in range(len(self.manifest.shards)):
            for name in self.manifest.bytes_per_token:
                self._verify_part(shard, name)

    def _verify_part(self, shard: int, name: str) -> None:
        path = self._written(shard, name)
        if file_sha256(path) != self.manifest.shards[shard].sha256[name]:
            raise ValueError(
                f"{path} is damaged: its content is not what was written (SHA-256). Delete it and call "
                "cache_activations again with the same arguments, which writes it anew."
            )
        self._verified.add(path)

    def parts(self, shard: int) -> list[Float[Tensor, "token _"]]:
        """Each model's rows of a shard, checked when they are read for the first time."""
        n_tokens = self.manifest.shards[shard].n_tokens
        return [
            read_part(self._part(shard, name), n_tokens, d_model, self.manifest.dtype)
            for name, d_model in zip(self.layout.names, self.layout.d_models, strict=True)
        ]

    def _part(self, shard: int, name: str) -> Path:
        """A file of a shard, checked if it is to be read for the first time."""
        path = self._written(shard, name)
        if self.checksums == "on_first_read" and path not in self._verified:
            self._verify_part(shard, name)
        return path

    def _written(self, shard: int, name: str) -> Path:
        """A file of a shard, as soon as it is there."""
        path = part_path(self.path, shard, name)
        if name not in self.manifest.shards[shard].sha256:
            self.manifest = self._manifest_with(lambda manifest: name in manifest.shards[shard].sha256, path)
            self._refuse_problem(shard, name)
        return path

    def _refuse_problem(self, shard: int, name: str) -> None:
        problem = self.manifest.part_problem(self.path, shard, name)
        if problem is not None:
            raise ValueError(
                f"The cache is not whole: {problem}. Call cache_activations again with the same arguments, which "
                "writes only what is missing."
            )

    def _manifest_with(self, is_enough: Callable[[CacheManifest], bool], awaited: Path) -> CacheManifest:
        """The manifest in the folder, as soon as it says enough; writers replace it with every file."""
        n_files, deadline = -1, 0.0
        while True:
            is_there = self.wait == 0 or (self.path / MANIFEST_FILENAME).exists()
            manifest = CacheManifest.read(self.path) if is_there else None
            if manifest is not None and is_enough(manifest):
                return manifest
            n_now = 0 if manifest is None else sum(len(shard.sha256) for shard in manifest.shards)
            if n_now > n_files:
                n_files, deadline = n_now, time.monotonic() + self.wait
            if time.monotonic() >= deadline:
                raise ValueError(
                    f"{awaited} is not written yet, and for {self.wait:g} s no file of the cache was: see whether its "
                    "worker runs. It goes on with what is missing when it is started again, and training with "
                    "resume_from_checkpoint; slower workers need a longer wait."
                )
            time.sleep(min(_POLL_SECONDS, self.wait))


class _ShuffledBlocks(Iterator[Tensor]):
    """Blocks of neighbouring tokens; the seed alone gives their order, so that a place in it is a number of blocks."""

    def __init__(
        self, cache: ActivationCache, block_size: int, seed: int, n_passes: int | None, part: tuple[int, int]
    ) -> None:
        self._cache, self._block_size = cache, block_size
        self._first_in_order = cache.wait > 0
        self._places = islice(self._shuffled_places(seed, n_passes), part[0], None, part[1])
        self._order = {
            "cache": cache.manifest.identity(),
            "block_size": block_size,
            "seed": seed,
            "first_pass_in_order": self._first_in_order,
        }
        self._n_given = 0
        self._shard: int | None = None
        self._parts: list[Tensor] = []

    @override
    def __next__(self) -> Float[Tensor, "_ d_in"]:
        shard, block = next(self._places)
        if shard != self._shard:
            self._parts, self._shard = self._cache.parts(shard), shard
        self._n_given += 1
        rows = slice(block * self._block_size, (block + 1) * self._block_size)
        return self._cache.layout.stack([part[rows] for part in self._parts])

    def _shuffled_places(self, seed: int, n_passes: int | None) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(seed)
        shards = self._cache.manifest.shards
        n_done = 0
        while n_passes is None or n_done < n_passes:
            shuffled = torch.randperm(len(shards), generator=generator).tolist()
            for shard in range(len(shards)) if self._first_in_order and n_done == 0 else shuffled:
                n_blocks = -(-shards[shard].n_tokens // self._block_size)
                for block in torch.randperm(n_blocks, generator=generator).tolist():
                    yield shard, block
            n_done += 1

    def state_dict(self) -> dict[str, Any]:
        return {**self._order, "n_given": self._n_given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._order.items():
            if state[name] != value:
                raise ValueError(
                    f"The checkpoint is of a stream with {name}={state[name]!r}, but that of {self._cache.path} has "
                    f"{value!r}: go on with the cache and the order that training began with. The first pass is in "
                    "order for a wait (wait_for_cache) above 0."
                )
        self._skip(state["n_given"])

    def approach(self, state: dict[str, Any], share: float) -> None:
        self._skip(int(share * state["n_given"]))

    def _skip(self, n_blocks: int) -> None:
        self._n_given = sum(1 for _ in islice(self._places, n_blocks))
