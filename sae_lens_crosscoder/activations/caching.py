"""Writes paired activations to disk, with one model in memory at a time."""

import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.cache import ActivationCache
from sae_lens_crosscoder.activations.checks import NonFiniteError
from sae_lens_crosscoder.activations.fingerprint import fingerprint
from sae_lens_crosscoder.activations.harvest import require_tokens
from sae_lens_crosscoder.activations.shards import (
    DTYPES,
    MANIFEST_FILENAME,
    CacheDtype,
    CacheManifest,
    Shard,
    part_path,
    write_part,
)
from sae_lens_crosscoder.models.hook_access import activation_at, refuse_hook
from sae_lens_crosscoder.models.loading import load_model, refuse_different_tokens
from sae_lens_crosscoder.models.pair import HookedModelPair

_TOKENS_PER_SHARD = 65_536


def cache_activations(
    path: str | Path,
    models: HookedModelPair | Sequence[str],
    tokens: Int[Tensor, "batch pos"],
    hook_name: str,
    *,
    dtype: CacheDtype = "bfloat16",
    dataset: str | None = None,
    prompts_per_shard: int | None = None,
    batch_size_prompts: int = 32,
    loading: Mapping[str, Any] | None = None,
) -> ActivationCache:
    """The activations of both models at one hook, on disk; a call that was interrupted goes on where it stopped.

    First all shards of the base model are written, then all of the chat model. Given names, each model is loaded when
    its turn comes (and once before, to check it), so that memory need hold only one.

    Args:
        path: a folder; d_in times 2 (bfloat16) or 4 bytes per token.
        models: a loaded pair, or the names of the base and the chat model, as `HookedModelPair.from_pretrained` takes.
        dtype: precision on disk.
        dataset: what the tokens are, for the record.
        prompts_per_shard: rows of tokens in one shard; None for about 65,536 tokens.
        loading: for names: `device`, `dtype`, `model_class_name` and what else `from_pretrained` takes.

    Raises:
        ValueError: before anything is written, for models that do not belong together, a hook that they do not have,
            a disk that is too small, or a folder with a cache of something else, such as of models whose weights have
            changed since.
        OSError: when something cannot be written; what is written by then stays.
    """
    require_tokens(tokens)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {tuple(DTYPES)}: float16 overflows on residual streams.")
    loaders, names = _loaders(models, loading)
    per_shard = prompts_per_shard or max(1, _TOKENS_PER_SHARD // tokens.shape[1])
    prompts = tokens.cpu().split(per_shard)
    widths, weights = _inspected(loaders, hook_name)
    manifest = CacheManifest(
        model_names=names,
        hook_name=hook_name,
        d_models=widths,
        dtype=dtype,
        dataset=dataset,
        context_size=tokens.shape[1],
        tokens_sha256=hashlib.sha256(tokens.cpu().long().contiguous().numpy().data).hexdigest(),
        shards=[Shard(part.numel(), {}) for part in prompts],
        weights_sha256=weights,
    )
    folder = Path(path)
    manifest = _resumed(folder, manifest)
    try:
        for m, load in enumerate(loaders):
            _write_model(folder, manifest, m, load, prompts, batch_size_prompts)
    except OSError as error:
        error.add_note(
            f"What is in {folder} stays: make room or mend the disk, and call cache_activations again with the same "
            "arguments, which writes only what is missing."
        )
        raise
    return ActivationCache(folder)


def _loaders(
    models: HookedModelPair | Sequence[str], loading: Mapping[str, Any] | None
) -> tuple[list[Callable[[], nn.Module]], tuple[str, ...] | None]:
    """A function per model that gives it, and the models' names."""
    if isinstance(models, HookedModelPair):
        if loading:
            raise ValueError(f"loading={dict(loading)} is for models given by name: this pair is loaded already.")
        return [lambda member=member: member for member in models.members], models.model_names
    if isinstance(models, str) or len(models) < 2:
        raise ValueError(f"models={models!r} must be a pair, or the names of the base and the chat model.")
    options = {"device": "cpu", "dtype": "float32", "model_class_name": "HookedTransformer", **(loading or {})}
    device, dtype, model_class = (options.pop(key) for key in ("device", "dtype", "model_class_name"))
    return [partial(load_model, name, device, dtype, model_class, options) for name in models], tuple(models)


@torch.no_grad()
def _inspected(loaders: Sequence[Callable[[], nn.Module]], hook_name: str) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Each model's width at the hook and what its weights are, after a check that they read the same tokens."""
    tokenizers: list[Any] = []
    widths: list[int] = []
    weights: list[str] = []
    for load in loaders:
        model: Any = load()
        refuse_hook(hook_name, model.hook_dict)
        tokenizers.append(getattr(model, "tokenizer", None))
        widths.append(activation_at(model, torch.zeros(1, 1, dtype=torch.long), hook_name).shape[-1])
        weights.append(fingerprint(model.parameters()))
        del model  # before the next one is loaded
    refuse_different_tokens(tokenizers)
    return tuple(widths), tuple(weights)


def _resumed(folder: Path, manifest: CacheManifest) -> CacheManifest:
    """The manifest in the folder, which must be of the same activations; without one, the new manifest, written."""
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / MANIFEST_FILENAME).exists():
        there = CacheManifest.read(folder)
        difference = there.difference(manifest)
        if difference is not None:
            raise ValueError(f"{folder} already holds another cache: {difference}. Choose another folder.")
        return there
    free = shutil.disk_usage(folder).free
    if free < manifest.n_bytes:
        raise ValueError(
            f"The cache needs {manifest.n_bytes / 1e9:.3g} GB, but {folder} has {free / 1e9:.3g} GB free: cache fewer "
            "tokens, use dtype='bfloat16', or train on the models directly."
        )
    manifest.write(folder)
    return manifest


def _write_model(
    folder: Path,
    manifest: CacheManifest,
    m: int,
    load: Callable[[], nn.Module],
    prompts: Sequence[Int[Tensor, "_ pos"]],
    batch_size_prompts: int,
) -> None:
    """All of one model's files that are not there yet; the manifest says so as soon as one is complete."""
    name = manifest.layout.names[m]
    missing = [shard for shard in range(len(prompts)) if manifest.part_problem(folder, shard, m) is not None]
    model = load() if missing else None
    for shard in tqdm(missing, desc=f"Caching {name} activations", unit="shard", leave=False):
        path = part_path(folder, shard, name)
        batches = prompts[shard].split(batch_size_prompts)
        rows = (_rows(model, batch, manifest.hook_name, DTYPES[manifest.dtype], path) for batch in batches)
        manifest.shards[shard].sha256[name] = write_part(path, rows)
        manifest.write(folder)


@torch.no_grad()
def _rows(
    model: Any, tokens: Int[Tensor, "_ pos"], hook_name: str, dtype: torch.dtype, path: Path
) -> Float[Tensor, "token d_model"]:
    rows = activation_at(model, tokens, hook_name).flatten(0, 1).to(dtype)
    if not torch.isfinite(rows).all():
        raise NonFiniteError(f"Activations for {path} are NaN or infinite: look at the model's dtype and at the hook.")
    return rows
