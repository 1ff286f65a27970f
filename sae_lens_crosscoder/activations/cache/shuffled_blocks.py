"""Blocks of an activation cache in shuffled order, which training batches are mixed from."""

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.activations.cache.manifest import CacheManifest
from sae_lens_crosscoder.activations.cache.rows import Rows, rows_of_blocks

_ROWS_AT_A_TIME = 1024


class ShuffledBlocks(Iterator[Tensor]):
    """Blocks of neighbouring tokens in an order given by the seed, so that a position is a number of blocks.

    A chunk joins the next blocks of one shard, which is read as a whole before the next.

    Args:
        parts: returns each model's rows of a shard.
        part: (i, n) for the i-th of n disjoint streams.
        first_pass_in_order: read the shards of the first pass in their order, as they are written.
    """

    def __init__(
        self,
        manifest: CacheManifest,
        path: Path,
        parts: Callable[[int], list[Rows]],
        block_size: int,
        seed: int,
        n_passes: int | None,
        part: tuple[int, int],
        first_pass_in_order: bool,
    ) -> None:
        self._manifest, self._path, self._parts_of, self._block_size = manifest, path, parts, block_size
        self._first_in_order = first_pass_in_order
        self._blocks = islice(self._shuffled_blocks(seed, n_passes), part[0], None, part[1])
        self._ahead: tuple[int, int] | None = None
        self._order = {
            "cache": manifest.identity(),
            "block_size": block_size,
            "seed": seed,
            "first_pass_in_order": first_pass_in_order,
        }
        self._n_read = 0
        self._shard: int | None = None
        self._parts: list[Rows] = []

    @override
    def __next__(self) -> Float[Tensor, "_ d_in"]:
        shard, block = self._ahead or next(self._blocks)
        blocks, self._ahead = [block], None
        while len(blocks) * self._block_size < _ROWS_AT_A_TIME:
            self._ahead = next(self._blocks, None)
            if self._ahead is None or self._ahead[0] != shard:
                break
            blocks.append(self._ahead[1])
            self._ahead = None
        if shard != self._shard:
            self._parts, self._shard = self._parts_of(shard), shard
        self._n_read += len(blocks)
        slices = [slice(block * self._block_size, (block + 1) * self._block_size) for block in blocks]
        return self._manifest.layout.of_models.stack([rows_of_blocks(part, slices) for part in self._parts])

    def _shuffled_blocks(self, seed: int, n_passes: int | None) -> Iterator[tuple[int, int]]:
        generator = torch.Generator().manual_seed(seed)
        shards = self._manifest.shards
        n_done = 0
        while n_passes is None or n_done < n_passes:
            shuffled = torch.randperm(len(shards), generator=generator).tolist()
            for shard in range(len(shards)) if self._first_in_order and n_done == 0 else shuffled:
                n_blocks = -(-shards[shard].n_tokens // self._block_size)
                for block in torch.randperm(n_blocks, generator=generator).tolist():
                    yield shard, block
            n_done += 1

    def state_dict(self) -> dict[str, Any]:
        return {**self._order, "n_read": self._n_read}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in self._order.items():
            if state[name] != value:
                raise ValueError(
                    f"The checkpoint was written with {name}={state[name]!r}, but the stream of {self._path} has "
                    f"{value!r}. Resume with the cache and the settings that training started with; wait_for_cache "
                    "above 0 makes the first pass in order."
                )
        self._skip(state["n_read"])

    def fast_forward(self, state: dict[str, Any], ratio: float) -> None:
        self._skip(int(ratio * state["n_read"]))

    def _skip(self, n_blocks: int) -> None:
        self._n_read = sum(1 for _ in islice(self._blocks, n_blocks))
