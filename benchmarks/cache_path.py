"""Rows `cache/bf16` of activation_path.py: our activation cache beside float32 memory maps.

The plain memory map checks nothing, and does not ensure that every shard reached the disk before the next.
"""

import hashlib
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from harness import against_target, comparison, interleaved

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache.manifest import (
    TOKEN_DTYPE,
    TOKENS,
    CacheManifest,
    Shard,
    part_path,
    write_parts,
)
from sae_lens_crosscoder.activations.cache.rows import CacheDtype, stored_rows
from sae_lens_crosscoder.stacking import StackedLayout

D_MODEL, HOOK, BATCH = 256, "blocks.1.hook_resid_post", 2048
Checksums = Literal["on_first_read", "never"]
CHECKSUMS: tuple[Checksums, ...] = ("on_first_read", "never")
BLOCK, SHARD_TOKENS, CACHE_SHARDS = 64, 65_536, 4
CACHE_TARGET = 1.8


class Disk:
    """Writes activations to a folder and reads them back in shuffled blocks, by our cache and by a memory map."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        generator = torch.Generator().manual_seed(0)
        self.parts = [torch.randn(SHARD_TOKENS, D_MODEL, generator=generator) for _ in range(2)]
        self.stacked = torch.cat(self.parts, dim=-1).numpy()
        self.seconds: dict[str, list[float]] = {}

    def ours(self, checksums: Checksums) -> None:
        start = time.perf_counter()
        self.write("bfloat16")
        written = time.perf_counter()
        self.read(checksums)
        self._note(f"bfloat16, {checksums}", start, written)

    def write(self, dtype: CacheDtype) -> None:
        """Write a cache of four shards."""
        layout = StackedLayout((D_MODEL, D_MODEL))
        shards = [Shard(SHARD_TOKENS, {}) for _ in range(CACHE_SHARDS)]
        manifest = CacheManifest(None, HOOK, layout.d_models, dtype, None, 128, "", shards)
        for name, part in zip(layout.names, self.parts, strict=True):
            for shard in range(CACHE_SHARDS):
                rows = ([stored_rows(batch, (D_MODEL,), dtype)] for batch in part.split(BATCH))
                (shards[shard].sha256[name],) = write_parts([part_path(self.folder, shard, name)], rows)
        for shard in range(CACHE_SHARDS):
            ids = torch.zeros(SHARD_TOKENS, dtype=TOKEN_DTYPE)
            (shards[shard].sha256[TOKENS],) = write_parts([part_path(self.folder, shard, TOKENS)], [[ids]])
        manifest.save(self.folder)

    def read(self, checksums: Checksums) -> float:
        """Read the cache like the memory map: blocks in random order, tokens within a block in order."""
        cache = slc.ActivationCache(self.folder, checksums)
        options: dict[str, Any] = dict(block_size=BLOCK, buffer_size=BATCH, mix_fraction=0.0)
        return sum(batch[0, 0].item() for batch in cache.shuffled(BATCH, n_passes=1, **options))

    def plain(self, checksums: bool) -> None:
        start = time.perf_counter()
        digest = self.write_plain(checksums)
        written = time.perf_counter()
        self.read_plain(digest)
        self._note("float32 numpy memmap" + ", with checksums" * checksums, start, written)

    def write_plain(self, checksums: bool = False) -> bytes | None:
        """Write a memory map; return its SHA-256 if asked to."""
        digest = hashlib.sha256()
        on_disk = np.memmap(self._plain, dtype=np.float32, mode="w+", shape=self._shape)
        for shard in range(CACHE_SHARDS):
            for first in range(0, SHARD_TOKENS, BATCH):
                batch = self.stacked[first : first + BATCH]
                on_disk[shard * SHARD_TOKENS + first :][: len(batch)] = batch
                if checksums:
                    digest.update(batch.data)
        on_disk.flush()
        return digest.digest() if checksums else None

    def read_plain(self, digest: bytes | None = None) -> float:
        """Read the memory map in random blocks, after comparing it with a SHA-256, if there is one."""
        on_disk = np.memmap(self._plain, dtype=np.float32, mode="r", shape=self._shape)
        assert digest is None or hashlib.sha256(on_disk.data).digest() == digest
        blocks = np.random.default_rng(0).permutation(self._shape[0] // BLOCK).reshape(-1, BATCH // BLOCK)
        total = 0.0
        for batch in blocks:
            total += np.concatenate([on_disk[block * BLOCK : (block + 1) * BLOCK] for block in batch])[0, 0].item()
        return total

    @property
    def _plain(self) -> Path:
        return self.folder / "plain.bin"

    _shape = (CACHE_SHARDS * SHARD_TOKENS, 2 * D_MODEL)

    def _note(self, who: str, start: float, written: float) -> None:
        self.seconds.setdefault(f"{who} write_ms", []).append((written - start) * 1e3)
        self.seconds.setdefault(f"{who} read_ms", []).append((time.perf_counter() - written) * 1e3)


def cache_rows(rounds: int) -> list[dict[str, Any]]:
    """Time writing and reading an activation cache, with and without checksums, beside memory maps."""
    peers = {"float32 numpy memmap": False, "float32 numpy memmap, with checksums": True}
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:  # a temporary folder may be in memory
        disk = Disk(Path(folder))
        functions = {check: lambda check=check: disk.ours(check) for check in CHECKSUMS}
        functions |= {peer: lambda check=check: disk.plain(check) for peer, check in peers.items()}
        times = interleaved(functions, rounds, warm_up=1)
        first = next(iter(slc.ActivationCache(folder)))
        assert torch.equal(first, torch.from_numpy(disk.stacked[: len(first)]).bfloat16())
    medians = {name: float(np.median(values[-rounds:])) for name, values in disk.seconds.items()}
    rows: list[dict[str, Any]] = []
    for check in CHECKSUMS:
        for peer in peers:
            row = comparison("cache/bf16", peer, times[check], times[peer], checksums_read=check)
            for step in ("write_ms", "read_ms"):
                row |= {f"ours_{step}": medians[f"bfloat16, {check} {step}"], f"peer_{step}": medians[f"{peer} {step}"]}
            row["n_tokens"] = CACHE_SHARDS * SHARD_TOKENS
            rows.append(against_target(row, None if peers[peer] else CACHE_TARGET))
    return rows
