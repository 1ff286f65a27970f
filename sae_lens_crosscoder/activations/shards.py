"""What an activation cache consists of on disk: a manifest, and per shard one file of rows per model."""

import dataclasses
import hashlib
import json
import os
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout

CacheDtype = Literal["bfloat16", "float32"]
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
MANIFEST_FILENAME = "manifest.json"
FORMAT_VERSION = 1


@dataclass
class Shard:
    n_tokens: int
    sha256: dict[str, str]
    """Checksum of each model's file, by `layout.names`; a model that is not written yet is missing."""


@dataclass
class CacheManifest:
    """Which activations a cache holds, and how far they are written."""

    model_names: tuple[str, ...] | None
    hook_name: str
    d_models: tuple[int, ...]
    dtype: CacheDtype
    dataset: str | None
    context_size: int
    tokens_sha256: str
    shards: list[Shard]
    weights_sha256: tuple[str, ...] | None = None
    """What each model's weights were when the cache was begun; None for a cache that does not say."""
    format_version: int = FORMAT_VERSION

    @property
    def layout(self) -> StackedLayout:
        return StackedLayout(self.d_models)

    @property
    def n_tokens(self) -> int:
        return sum(shard.n_tokens for shard in self.shards)

    @property
    def n_bytes(self) -> int:
        return self.n_tokens * self.layout.d_in * DTYPES[self.dtype].itemsize

    def contents(self) -> str:
        """A text that differs when a file's content does."""
        return hashlib.sha256(json.dumps([shard.sha256 for shard in self.shards], sort_keys=True).encode()).hexdigest()

    def part_problem(self, folder: Path, shard: int, m: int) -> str | None:
        """Why model m's file of a shard cannot be read, as far as its size tells; None when it can."""
        path = part_path(folder, shard, self.layout.names[m])
        expected = self.shards[shard].n_tokens * self.d_models[m] * DTYPES[self.dtype].itemsize
        if self.layout.names[m] not in self.shards[shard].sha256:
            return f"{path} is not written yet"
        if not path.exists():
            return f"{path} is missing"
        if path.stat().st_size != expected:
            return f"{path} is {path.stat().st_size} bytes long instead of {expected}"
        return None

    def difference(self, other: "CacheManifest") -> str | None:
        """The first thing that makes two manifests those of different activations; None when they agree."""
        for field in dataclasses.fields(self):
            mine, theirs = getattr(self, field.name), getattr(other, field.name)
            if field.name == "weights_sha256":
                changed = [
                    name for name, a, b in zip(self.layout.names, mine or (), theirs or (), strict=False) if a != b
                ]
                if changed:
                    return f"it is of other weights of the {' and the '.join(changed)} model, under the same name"
                continue
            if field.name == "shards":
                mine, theirs = ([shard.n_tokens for shard in shards] for shards in (mine, theirs))
            if mine != theirs:
                return f"{field.name} is {mine!r} there and {theirs!r} here"
        return None

    def write(self, folder: Path) -> None:
        with atomic_file(folder / MANIFEST_FILENAME) as file:
            file.write(json.dumps(dataclasses.asdict(self), indent=1).encode())

    @classmethod
    def read(cls, folder: Path) -> "CacheManifest":
        path = folder / MANIFEST_FILENAME
        if not path.exists():
            raise ValueError(f"{folder} is no activation cache: it has no {MANIFEST_FILENAME}. Make one first.")
        fields: dict[str, Any] = json.loads(path.read_text())
        if fields.get("format_version") != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format_version={fields.get('format_version')}, but this version reads {FORMAT_VERSION}: "
                "make the cache again."
            )
        if fields["model_names"] is not None:
            fields["model_names"] = tuple(fields["model_names"])
        if fields.get("weights_sha256") is not None:
            fields["weights_sha256"] = tuple(fields["weights_sha256"])
        fields["d_models"] = tuple(fields["d_models"])
        fields["shards"] = [Shard(**shard) for shard in fields["shards"]]
        return cls(**fields)


def part_path(folder: Path, shard: int, model: str) -> Path:
    """One model's rows of one shard, tokens in order, without a header."""
    return folder / f"{shard:05d}.{model}.bin"


def write_part(path: Path, batches: Iterable[Float[Tensor, "_ d_model"]]) -> str:
    """Write rows as they are in memory, whole or not at all; returns their SHA-256."""
    digest = hashlib.sha256()
    with atomic_file(path) as file, ThreadPoolExecutor(max_workers=1) as hashing:
        hashed: Future[None] | None = None
        for batch in batches:
            raw = batch.cpu().contiguous().view(torch.uint8).numpy().data
            if hashed is not None:
                hashed.result()  # no more than one batch waits, and an error is not lost
            hashed = hashing.submit(digest.update, raw)  # beside the writing and the next forward pass
            file.write(raw)
    return digest.hexdigest()


def read_part(path: Path, n_tokens: int, d_model: int, dtype: CacheDtype) -> Float[Tensor, "token d_model"]:
    """The rows of a file as a tensor that the disk backs: read where and when they are used."""
    rows = torch.from_file(str(path), shared=False, size=n_tokens * d_model, dtype=DTYPES[dtype])
    return rows.view(n_tokens, d_model)


def sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def atomic_file(path: Path) -> Generator[BinaryIO]:
    """A file that has its name only once it is complete and on disk."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, the room is needed
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # or the new name may be lost with the power
    finally:
        os.close(folder)
