"""Files of an activation cache: a manifest, and for every shard one file of rows per model."""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lens_crosscoder.activations.cache.rows import CacheDtype, bytes_of_row
from sae_lens_crosscoder.stacking import StackedLayout, split_hooks
from sae_lens_crosscoder.storage.atomic import atomic_write, write_text_atomically
from sae_lens_crosscoder.storage.checksums import FolderChecksums, digest, file_sha256
from sae_lens_crosscoder.storage.field_types import naming_file, validate_field_types
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.names import printable_names

TOKENS, TOKEN_DTYPE = "tokens", torch.int32
MANIFEST_FILENAME, _LOCK_FILENAME = "manifest.json", "manifest.lock"
CONTEXTS_FILENAME = "contexts.safetensors"
"""Whole contexts and the mask of their cached tokens; written only if tokens were left out."""
_VERSIONS = {"bfloat16": 2, "float32": 2, "int8": 3}
"""Of the format, by precision: earlier releases read version 2."""


@dataclass
class Shard:
    """A run of neighbouring tokens that is stored in one set of files."""

    n_tokens: int
    sha256: dict[str, str]
    """Checksum of each file by the name of its content; files that are not written yet are missing."""


@dataclass
class CacheManifest:
    """Description of the activations in a cache, and the checksums of the files written so far."""

    model_names: tuple[str, ...] | None
    hook_name: str
    d_models: tuple[int, ...]
    dtype: CacheDtype
    dataset: str | None
    context_size: int
    tokens_sha256: str
    shards: list[Shard]
    token_replacements: dict[str, str] = dataclasses.field(default_factory=dict)
    weights_sha256: tuple[str, ...] | None = None
    """Fingerprint of each model's weights when the cache was begun; None if unknown."""
    pair_check: dict[str, Any] | None = None
    """How far the models differ on the first contexts, as `PairCheck.to_dict` gives it; None in older caches."""
    format_version: int = 0
    """Follows from the precision."""

    def __post_init__(self) -> None:
        self.format_version = self.format_version or _VERSIONS[self.dtype]

    @property
    def layout(self) -> StackedLayout:
        """The sources' slices of the stacked axis; a file holds one model's, at all hooks."""
        hooks = split_hooks(self.hook_name)
        return StackedLayout(self.d_models, hooks if len(hooks) > 1 else ())

    @property
    def widths(self) -> dict[str, tuple[int, ...]]:
        """Widths of every model's sources, in the order of its rows."""
        layout = self.layout
        n = layout.n_sources // layout.n_models
        return {name: layout.d_models[n * m : n * (m + 1)] for m, name in enumerate(layout.of_models.names)}

    @property
    def n_tokens(self) -> int:
        """Number of tokens in the cache once it is complete."""
        return sum(shard.n_tokens for shard in self.shards)

    @property
    def bytes_per_token(self) -> dict[str, int]:
        """Bytes per token in each file of a shard, by the name of its content: a model, or `tokens` for their ids."""
        of_models = {name: bytes_of_row(widths, self.dtype) for name, widths in self.widths.items()}
        return {TOKENS: TOKEN_DTYPE.itemsize} | of_models

    @property
    def n_bytes(self) -> int:
        """Size of all files once the cache is complete."""
        return self.n_tokens * sum(self.bytes_per_token.values())

    def identity(self) -> str:
        """A digest that changes with the activations, but not with the number of files written so far."""
        fields = dataclasses.asdict(self) | {"shards": [shard.n_tokens for shard in self.shards]}
        return digest({name: value for name, value in fields.items() if name != "pair_check"})

    def part_problem(self, folder: Path, shard: int, name: str) -> str | None:
        """A description of what is wrong with a shard's file, judged by its size; None if it can be read."""
        path = part_path(folder, shard, name)
        expected = self.shards[shard].n_tokens * self.bytes_per_token[name]
        if name not in self.shards[shard].sha256:
            return f"{path} is not written yet"
        if not path.exists():
            return f"{path} is missing"
        if path.stat().st_size != expected:
            return f"{path} has {path.stat().st_size} bytes, expected {expected}"
        return None

    def difference(self, second: "CacheManifest") -> str | None:
        """A description of the first difference between the activations of two manifests; None if they agree."""
        for field in dataclasses.fields(self):
            if field.name == "pair_check":  # follows from the rest, up to rounding
                continue
            mine, theirs = getattr(self, field.name), getattr(second, field.name)
            if field.name == "weights_sha256":
                names = self.layout.of_models.names
                changed = [name for name, a, b in zip(names, mine or (), theirs or (), strict=False) if a != b]
                if changed:
                    return f"the {' and the '.join(changed)} model had other weights under the same name"
                continue
            if field.name == "shards":
                mine, theirs = ([shard.n_tokens for shard in shards] for shards in (mine, theirs))
            if mine != theirs:
                return f"its {field.name} is {mine!r}, not {theirs!r}"
        return None

    def save(self, folder: Path) -> None:
        """Write `manifest.json` once, and the checksums of the files written so far to `checksums.json`."""
        path = folder / MANIFEST_FILENAME
        if not path.exists():
            fields = dataclasses.asdict(self) | {"shards": [shard.n_tokens for shard in self.shards]}
            write_text_atomically(json.dumps(fields, indent=1), path)
        checksums = FolderChecksums(folder)
        checksums.files = {MANIFEST_FILENAME: file_sha256(path)}
        for i, shard in enumerate(self.shards):
            checksums.files |= {part_path(folder, i, name).name: shard.sha256[name] for name in sorted(shard.sha256)}
        checksums.write()

    def add_checksums(self, folder: Path, name: str, written: Mapping[int, str]) -> None:
        """Add the checksums of written files to the folder's manifest, keeping what other workers added."""
        with manifest_lock(folder):
            self.shards = CacheManifest.load(folder).shards
            for shard, sha256 in written.items():
                self.shards[shard].sha256[name] = sha256
            self.save(folder)

    def drop_missing_files(self, folder: Path) -> None:
        """Remove files that are missing or incomplete from the manifest, so that they are written again."""
        files = [
            (i, name) for i, shard in enumerate(self.shards) for name in self.bytes_per_token if name in shard.sha256
        ]
        missing = [file for file in files if self.part_problem(folder, *file) is not None]
        for shard, name in missing:
            del self.shards[shard].sha256[name]
        if missing:
            self.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "CacheManifest":
        """Load the folder's manifest and validate its fields."""
        path = folder / MANIFEST_FILENAME
        if not path.exists():
            raise ValueError(
                f"{folder} is not an activation cache: {MANIFEST_FILENAME} is missing. Call cache_activations."
            )
        checksums = FolderChecksums(folder)
        checksums.validate(MANIFEST_FILENAME, "Write the cache again in another folder.")
        fields = load_json(path)
        version, expected = fields.get("format_version"), _VERSIONS.get(str(fields.get("dtype")))
        if version != expected and (expected is not None or version not in _VERSIONS.values()):
            raise ValueError(
                f"{path} has format_version={version!r:.80}, expected {expected or max(_VERSIONS.values())}. Write the "
                "cache again with this version."
            )
        with naming_file(path):
            manifest = cls._from_fields(fields)
        for i, shard in enumerate(manifest.shards):
            start, end = part_path(folder, i, "|").name.split("|")
            files = [file for file in checksums.files if file.startswith(start) and file.endswith(end)]
            shard.sha256 = {file[len(start) : -len(end)]: checksums.files[file] for file in files}
        return manifest

    @classmethod
    def _from_fields(cls, fields: Mapping[str, Any]) -> "CacheManifest":
        """Validate the fields of a manifest one by one; a ValueError names the first wrong one."""
        known = {field.name for field in dataclasses.fields(cls)}
        required = known - {"token_replacements", "weights_sha256", "pair_check"}
        if not required <= fields.keys() <= known:
            raise ValueError(f"missing or unknown fields: {printable_names(required ^ (fields.keys() & known))}")
        for name in ("d_models", "shards"):
            sizes: Any = fields[name]
            if not isinstance(sizes, list) or not all(type(size) is int and 0 < size < 2**48 for size in sizes):
                raise ValueError(f"invalid value: `{name}={sizes!r:.80}` (expected a list of positive integers)")
        if type(fields["context_size"]) is not int or fields["context_size"] < 1:
            raise ValueError(f"invalid value: `context_size={fields['context_size']!r:.80}` (expected at least 1)")
        counts: list[int] = fields["shards"]
        values: dict[str, Any] = {**fields, "shards": [Shard(n_tokens, {}) for n_tokens in counts]}
        validate_field_types(cls, values)
        for name in ("model_names", "d_models", "weights_sha256"):
            if values.get(name) is not None:
                values[name] = tuple(values[name])
        manifest = cls(**values)
        for name in ("model_names", "weights_sha256"):
            entries = getattr(manifest, name)
            if entries is not None and len(entries) != manifest.layout.n_models:
                raise ValueError(f"`{name}` has {len(entries)} entries for {manifest.layout.n_models} models")
        return manifest


def manifest_lock(folder: Path) -> FileLock:
    """Lock for changing a manifest that several workers share; a process that dies releases it."""
    return FileLock(folder / _LOCK_FILENAME)


def part_path(folder: Path, shard: int, name: str) -> Path:
    """Path of one model's rows of a shard, or of the ids of its tokens, in order and without a header."""
    return folder / f"{shard:05d}.{name}.bin"


def write_parts(paths: Sequence[Path], batches: Iterable[Sequence[Tensor]]) -> list[str]:
    """Write rows as they are in memory, atomically, to all files in step; returns the SHA-256 of each.

    Args:
        batches: one tensor per file in each.
    """
    digests = [hashlib.sha256() for _ in paths]
    with ExitStack() as stack:
        files = [stack.enter_context(atomic_write(path)) for path in paths]
        hashing = stack.enter_context(ThreadPoolExecutor(max_workers=1))
        hashed: Future[None] | None = None
        for parts in batches:
            raw = [part.cpu().contiguous().view(torch.uint8).numpy().data for part in parts]
            if hashed is not None:
                hashed.result()  # at most one batch waits, and errors are raised
            hashed = hashing.submit(_update, digests, raw)  # while this writes and the next forward pass runs
            for file, data in zip(files, raw, strict=True):
                file.write(data)
    return [sha256.hexdigest() for sha256 in digests]


def _update(digests: Sequence[Any], raw: Sequence[memoryview]) -> None:
    for sha256, data in zip(digests, raw, strict=True):
        sha256.update(data)


def contexts_sha256(tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "batch pos"]) -> str:
    """SHA-256 of the tokens, and of the mask unless it is True everywhere."""
    sha256 = hashlib.sha256(tokens.cpu().long().contiguous().numpy().data)
    if not token_mask.all():
        sha256.update(token_mask.cpu().contiguous().numpy().data)
    return sha256.hexdigest()


def load_token_ids(path: Path, n_tokens: int) -> Int[Tensor, " token"]:
    """Load the ids of a shard's tokens."""
    return torch.from_file(str(path), shared=False, size=n_tokens, dtype=TOKEN_DTYPE).long()
