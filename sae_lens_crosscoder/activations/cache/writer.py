"""Writing activation caches: one model in memory at a time if need be, or by several workers."""

import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.cache.manifest import (
    CONTEXTS_FILENAME,
    MANIFEST_FILENAME,
    TOKEN_DTYPE,
    TOKENS,
    CacheManifest,
    Shard,
    contexts_sha256,
    manifest_lock,
    part_path,
    write_parts,
)
from sae_lens_crosscoder.activations.cache.models import CacheModels, Loader
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.cache.rows import CacheDtype, frac_lost, stored_rows, validate_dtype
from sae_lens_crosscoder.activations.harvest import NonFiniteError, validate_tokens
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.token_mask import as_token_mask
from sae_lens_crosscoder.models.aligned_models import aligned_activations_at
from sae_lens_crosscoder.models.alignment import TokenAlignment
from sae_lens_crosscoder.models.hook_access import stack
from sae_lens_crosscoder.models.lower_layers import lower_layers_once, shared_blocks
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.stacking import hook_of_model
from sae_lens_crosscoder.storage.tensor_files import save_tensors

_TOKENS_PER_SHARD = 65_536
_SECONDS_TO_WAIT_FOR_WORKERS = 600
_MOST_LOST = 0.002
"""Share of the variance that int8 may take before a warning."""

_Reader = tuple[Any, str, TokenAlignment | None]  # a model, its hook, and what it reads in place of the tokens
Prompts = tuple[Int[Tensor, "_ pos"], Bool[Tensor, "_ pos"]]  # a shard's tokens and their mask


@validate_arguments
def cache_activations(
    path: str | Path,
    models: HookedModelPair | Sequence[str],
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    *,
    token_mask: Bool[Tensor, "batch pos"] | None = None,
    dtype: CacheDtype = "bfloat16",
    dataset: str | None = None,
    prompts_per_shard: int | None = None,
    batch_size: int = 32,
    loading: Mapping[str, Any] | None = None,
    worker: tuple[int, int] = (0, 1),
) -> ActivationCache:
    """Write both models' activations at a hook to disk; called again after an interruption, it resumes.

    A loaded pair writes shard after shard, which an `ActivationCache` with `wait` can read meanwhile. Models given by
    name are loaded one at a time (and once before, to check them), so that memory holds only one: the base model writes
    all shards, then the chat model does. Models that differ in an adapter share one copy of their weights, so they are
    loaded together, and layers below the adapter run once.

    Several hooks, joined by `+`, are read in one pass of each model, of which there may then be only one.

    The models are compared on the first contexts before anything is written; the manifest keeps the numbers.

    Args:
        path: a folder; needs d_in times 1 (int8), 2 (bfloat16) or 4 (float32) bytes per token.
        models: a loaded pair, or the names of the base and the chat model, as `HookedModelPair.from_pretrained` takes.
        token_mask: False for tokens to leave out, such as padding; None to write all.
        dtype: precision on disk. `int8` keeps a scale per row and source, and is read as float32: rounding changes a
            number by up to a 254th of its row's largest. A warning says if that is more than 0.2 % of a usual token's
            variance, as where some coordinates are far larger than all others.
        dataset: description of the tokens, stored in the manifest.
        prompts_per_shard: rows of tokens in one shard; None for about 65,536 tokens.
        batch_size: prompts per forward pass.
        loading: for models given by name: `device`, `dtype`, `model_class_name` and other arguments of
            `from_pretrained`.
        worker: (i, n) for the i-th of n calls, counted from 0, that write one cache together, every n-th shard each;
            they may run at once in different processes. The returned cache waits for the other workers' shards.

    Raises:
        ValueError: before anything is written, for models that do not belong together or do not differ, a hook that
            they lack, too little disk space, or a folder with another cache, such as one of models with other weights.
        OSError: if writing fails; files written before stay.
    """
    validate_tokens(tokens)
    token_mask = as_token_mask(tokens, token_mask)
    if not token_mask.any():
        raise ValueError("token_mask is False everywhere, so there are no activations to write.")
    validate_worker(worker)
    validate_dtype(dtype)
    sources = CacheModels.inspect(models, loading, tokens, token_mask, hook_name)
    shards = _shards(tokens, token_mask, prompts_per_shard)
    manifest = CacheManifest(
        model_names=sources.model_names,
        hook_name=hook_name,
        d_models=sources.d_models,
        dtype=dtype,
        dataset=dataset,
        context_size=tokens.shape[1],
        tokens_sha256=contexts_sha256(tokens, token_mask),
        shards=[Shard(int(mask.sum()), {}) for _, mask in shards],
        token_replacements=sources.token_replacements,
        weights_sha256=sources.weights_sha256,
        pair_check=sources.pair_check.to_dict(),
    )
    folder = Path(path)
    manifest = _begin_or_resume(folder, manifest)
    own_shards = range(worker[0], len(shards), worker[1])
    loaders = dict(zip(manifest.layout.of_models.names, sources.loaders, strict=True))
    alignments = dict(zip(loaders, sources.alignments, strict=True))
    try:
        if not token_mask.all():
            _write_contexts(folder, tokens, token_mask)
        _write_tokens(folder, manifest, shards, own_shards)
        for group in [loaders] if sources.are_loaded else [{name: load} for name, load in loaders.items()]:
            _write_models(folder, manifest, group, alignments, shards, own_shards, batch_size)
    except OSError as error:
        error.add_note(
            f"Files written to {folder} stay. Free disk space or fix the disk, then call cache_activations again with "
            "the same arguments, which writes only missing files."
        )
        raise
    return ActivationCache(folder, wait=_SECONDS_TO_WAIT_FOR_WORKERS if worker[1] > 1 else 0)


def validate_worker(worker: tuple[int, int]) -> None:
    """Raise a ValueError unless `worker` is (i, n) with i from 0 to n - 1."""
    if not 0 <= worker[0] < worker[1]:
        raise ValueError(f"worker={worker} must be (i, n) with i from 0 to n - 1: n workers share the shards.")


def _shards(
    tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "batch pos"], prompts_per_shard: int | None
) -> list[Prompts]:
    """The prompts of every shard; groups of prompts without any token to write get none."""
    per_shard = prompts_per_shard or max(1, _TOKENS_PER_SHARD // tokens.shape[1])
    parts = zip(tokens.cpu().split(per_shard), token_mask.cpu().split(per_shard), strict=True)
    return [(part, mask) for part, mask in parts if mask.any()]


def _begin_or_resume(folder: Path, manifest: CacheManifest) -> CacheManifest:
    """The folder's manifest, which must describe the same activations; in a new folder, write this one."""
    folder.mkdir(parents=True, exist_ok=True)
    with manifest_lock(folder):
        if (folder / MANIFEST_FILENAME).exists():
            existing = CacheManifest.load(folder)
            difference = existing.difference(manifest)
            if difference is not None:
                raise ValueError(f"{folder} already contains another cache: {difference}. Choose another folder.")
            existing.drop_missing_files(folder)
            return existing
        free = shutil.disk_usage(folder).free
        if free < manifest.n_bytes:
            raise ValueError(
                f"The cache needs {manifest.n_bytes / 1e9:.3g} GB, but {folder} has {free / 1e9:.3g} GB free. Cache "
                "fewer tokens, use dtype='int8', or train on the models directly."
            )
        manifest.save(folder)
        return manifest


def _write_contexts(folder: Path, tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "batch pos"]) -> None:
    """Write whole contexts and the mask of the tokens that are cached."""
    path = folder / CONTEXTS_FILENAME
    with manifest_lock(folder):
        if not path.exists():
            contexts = {"tokens": tokens.cpu().to(TOKEN_DTYPE), "token_mask": token_mask.cpu()}
            save_tensors({name: tensor.contiguous() for name, tensor in contexts.items()}, path)


def _write_tokens(folder: Path, manifest: CacheManifest, shards: Sequence[Prompts], own_shards: range) -> None:
    """Write the ids of all cached tokens."""
    written: dict[int, str] = {}
    for shard in own_shards:
        if manifest.part_problem(folder, shard, TOKENS) is not None:
            tokens, mask = shards[shard]
            (written[shard],) = write_parts([part_path(folder, shard, TOKENS)], [[tokens[mask].to(TOKEN_DTYPE)]])
    if written:
        manifest.add_checksums(folder, TOKENS, written)


def _write_models(
    folder: Path,
    manifest: CacheManifest,
    loaders: Mapping[str, Loader],
    alignments: Mapping[str, TokenAlignment | None],
    shards: Sequence[Prompts],
    own_shards: range,
    batch_size: int,
) -> None:
    """Write these models' missing files shard by shard, and add them to the manifest as soon as they are complete."""
    files = [(shard, name) for shard in own_shards for name in loaders]
    missing = [file for file in files if manifest.part_problem(folder, *file) is not None]
    models = {name: loaders[name]() for name in dict.fromkeys(name for _, name in missing)}
    seen: set[str] = set()
    progress = tqdm(total=len(missing), desc=f"Caching {' and '.join(loaders)} activations", unit="file", leave=False)
    with progress:
        for shard, names in _written_in_step(missing, models):
            paths = [part_path(folder, shard, name) for name in names]
            batches = zip(*(part.split(batch_size) for part in shards[shard]), strict=True)
            hooks = {name: hook_of_model(manifest.hook_name, m) for m, name in enumerate(alignments)}
            readers = [(models[name], hooks[name], alignments[name]) for name in names]
            rows = (_stored(_rows(readers, batch, paths), names, manifest, seen) for batch in batches)
            for name, sha256 in zip(names, write_parts(paths, rows), strict=True):
                manifest.add_checksums(folder, name, {shard: sha256})
            progress.update(len(names))


def _written_in_step(missing: Sequence[tuple[int, str]], models: Mapping[str, Any]) -> Iterator[tuple[int, list[str]]]:
    """The files to write, by shard: all of a shard's at once if the models share layers, else one after another."""
    with torch.no_grad():
        are_apart = not any(shared_blocks(models.values()))
    if are_apart:
        yield from ((shard, [name]) for shard, name in missing)
        return
    for shard in dict.fromkeys(shard for shard, _ in missing):
        yield shard, [name for other, name in missing if other == shard]


@torch.no_grad()
def _rows(readers: Sequence[_Reader], prompts: Prompts, paths: Sequence[Path]) -> list[Float[Tensor, "token d_model"]]:
    """Each model's activations, at its hook, of the tokens in the mask; layers that models share run once."""
    tokens, mask = prompts
    parts: list[Tensor] = []
    with lower_layers_once([model for model, *_ in readers], ()):
        for (model, hook_name, alignment), path in zip(readers, paths, strict=True):
            activations = stack(aligned_activations_at(model, tokens.long(), hook_name, alignment))
            parts.append(activations[mask.to(activations.device)])
            if not torch.isfinite(parts[-1]).all():
                raise NonFiniteError(f"Activations for {path} are NaN or infinite. Check the model's dtype and hook.")
    return parts


def _stored(
    parts: Sequence[Float[Tensor, "token d_model"]], names: Sequence[str], manifest: CacheManifest, seen: set[str]
) -> list[Tensor]:
    """What the files hold; warns at the first rows of a model, whose name is not in `seen`, if int8 is too coarse."""
    widths = [manifest.widths[name] for name in names]
    for name, part, of_sources in zip(names, parts, widths, strict=True):
        lost = frac_lost(part, of_sources) if manifest.dtype == "int8" and name not in seen else 0.0
        seen.add(name)
        if lost > _MOST_LOST:
            warnings.warn(
                f"int8 takes {lost:.1%} of a usual token's variance from the {name} model's activations, because some "
                "coordinates are far larger than all others. Use dtype='bfloat16'.",
                stacklevel=2,
            )
    return [stored_rows(part, of_sources, manifest.dtype) for part, of_sources in zip(parts, widths, strict=True)]
