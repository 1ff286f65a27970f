"""Writes paired activations to disk, if need be with one model in memory at a time, or by several workers."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from sae_lens_crosscoder.activations.cache.manifest import (
    CONTEXTS_FILENAME,
    DTYPES,
    MANIFEST_FILENAME,
    TOKEN_DTYPE,
    TOKENS,
    CacheDtype,
    CacheManifest,
    Shard,
    contexts_sha256,
    manifest_lock,
    part_path,
    write_part,
)
from sae_lens_crosscoder.activations.cache.reader import ActivationCache
from sae_lens_crosscoder.activations.harvest import NonFiniteError, validate_tokens
from sae_lens_crosscoder.data.token_mask import as_token_mask
from sae_lens_crosscoder.models.hook_access import activation_at, validate_hook_name
from sae_lens_crosscoder.models.loading import load_model, validate_same_tokenizer
from sae_lens_crosscoder.models.pair import HookedModelPair
from sae_lens_crosscoder.models.token_replacements import replace_embedded_tokens, replacement_ids
from sae_lens_crosscoder.storage.checksums import fingerprint
from sae_lens_crosscoder.storage.tensor_files import save_tensors

_TOKENS_PER_SHARD = 65_536
_WAIT_FOR_OTHERS = 600  # seconds

Prompts = tuple[Int[Tensor, "_ pos"], Bool[Tensor, "_ pos"]]  # a shard's, and which of their tokens are kept


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
    """The activations of both models at one hook, on disk; a call that was interrupted goes on where it stopped.

    Of a loaded pair, one shard after another is written, which an `ActivationCache` that waits can read meanwhile.
    Given names, each model is loaded when its turn comes (and once before, to check it), so that memory need hold only
    one: first all shards of the base model are written, then all of the chat model.

    Args:
        path: a folder; d_in times 2 (bfloat16) or 4 bytes per token.
        models: a loaded pair, or the names of the base and the chat model, as `HookedModelPair.from_pretrained` takes.
        token_mask: which of the tokens to write, as padding has no place in a cache; None for all.
        dtype: precision on disk.
        dataset: what the tokens are, for the record.
        prompts_per_shard: rows of tokens in one shard; None for about 65,536 tokens.
        loading: for names: `device`, `dtype`, `model_class_name` and what else `from_pretrained` takes.
        worker: (i, n) for the i-th of n calls, counted from 0, that write one cache, each every n-th shard; they may
            run at once, each i in one process. The cache that is returned waits for the others' shards.

    Raises:
        ValueError: before anything is written, for models that do not belong together, a hook that they do not have,
            a disk that is too small, or a folder with a cache of something else, such as of models whose weights have
            changed since.
        OSError: when something cannot be written; what is written by then stays.
    """
    validate_tokens(tokens)
    token_mask = as_token_mask(tokens, token_mask)
    if not token_mask.any():
        raise ValueError("token_mask is False everywhere, so there are no activations to write.")
    validate_worker(worker)
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {tuple(DTYPES)}: float16 overflows on residual streams.")
    loaders, names, replacements = _loaders(models, loading)
    widths, weights, replaced = _inspected(loaders, hook_name, replacements)
    if not isinstance(models, HookedModelPair):  # whose models read what they should already
        loaders[:-1] = [partial(_reading_in_place, load, replaced) for load in loaders[:-1]]
    per_shard = prompts_per_shard or max(1, _TOKENS_PER_SHARD // tokens.shape[1])
    shards = zip(tokens.cpu().split(per_shard), token_mask.cpu().split(per_shard), strict=True)
    prompts = [(part, kept) for part, kept in shards if kept.any()]
    manifest = CacheManifest(
        model_names=names,
        hook_name=hook_name,
        d_models=widths,
        dtype=dtype,
        dataset=dataset,
        context_size=tokens.shape[1],
        tokens_sha256=contexts_sha256(tokens, token_mask),
        shards=[Shard(int(kept.sum()), {}) for _, kept in prompts],
        token_replacements=replacements,
        weights_sha256=weights,
    )
    folder = Path(path)
    manifest = _resumed(folder, manifest)
    own = range(worker[0], len(prompts), worker[1])
    members = dict(zip(manifest.layout.names, loaders, strict=True))
    in_turn = [members] if isinstance(models, HookedModelPair) else [{name: members[name]} for name in members]
    try:
        if not token_mask.all():
            _write_contexts(folder, tokens, token_mask)
        _write_tokens(folder, manifest, prompts, own)
        for together in in_turn:
            _write_models(folder, manifest, together, prompts, own, batch_size)
    except OSError as error:
        error.add_note(
            f"What is in {folder} stays: make room or mend the disk, and call cache_activations again with the same "
            "arguments, which writes only what is missing."
        )
        raise
    return ActivationCache(folder, wait=_WAIT_FOR_OTHERS if worker[1] > 1 else 0)


def validate_worker(worker: tuple[int, int]) -> None:
    """Raise a ValueError for what is not (i, n), the i-th of n workers counted from 0."""
    if not 0 <= worker[0] < worker[1]:
        raise ValueError(f"worker={worker} must be (i, n) with i from 0 to n - 1: n workers share the shards.")


def _loaders(
    models: HookedModelPair | Sequence[str], loading: Mapping[str, Any] | None
) -> tuple[list[Callable[[], nn.Module]], tuple[str, ...] | None, dict[str, str]]:
    """A function per model that gives it, the models' names, and what the base model reads in place of some tokens."""
    if isinstance(models, HookedModelPair):
        if loading:
            raise ValueError(
                f"loading ({', '.join(loading)}) is for models given by name: this pair is loaded already."
            )
        return (
            [lambda member=member: member for member in models.members],
            models.model_names,
            models.token_replacements,
        )
    if isinstance(models, str) or len(models) < 2:
        raise ValueError(f"models={models!r} must be a pair, or the names of the base and the chat model.")
    options: dict[str, Any] = {
        "device": "cpu",
        "dtype": "float32",
        "model_class_name": "HookedTransformer",
        **(loading or {}),
    }
    device, dtype, model_class = (options.pop(key) for key in ("device", "dtype", "model_class_name"))
    replacements = dict(options.pop("token_replacements", None) or {})
    loaders: list[Callable[[], nn.Module]] = [
        partial(load_model, name, device, dtype, model_class, options) for name in models
    ]
    return loaders, tuple(models), replacements


def _reading_in_place(load: Callable[[], nn.Module], replaced: Mapping[int, int]) -> nn.Module:
    model = load()
    replace_embedded_tokens(model, replaced)
    return model


@torch.no_grad()
def _inspected(
    loaders: Sequence[Callable[[], nn.Module]], hook_name: str, replacements: Mapping[str, str]
) -> tuple[tuple[int, ...], tuple[str, ...], dict[int, int]]:
    """Each model's width at the hook, what its weights are, and the ids that the base model replaces.

    With these they read the same tokens, or a ValueError says which they do not.
    """
    tokenizers: list[Any] = []
    widths: list[int] = []
    weights: list[str] = []
    for load in loaders:
        model: Any = load()
        validate_hook_name(hook_name, model.hook_dict)
        tokenizers.append(getattr(model, "tokenizer", None))
        widths.append(activation_at(model, torch.zeros(1, 1, dtype=torch.long), hook_name).shape[-1])
        weights.append(fingerprint(model.parameters()))
        del model  # before the next one is loaded
    replaced = replacement_ids(replacements, tokenizers[0], tokenizers[-1])
    validate_same_tokenizer(tokenizers, replaced)
    return tuple(widths), tuple(weights), replaced


def _resumed(folder: Path, manifest: CacheManifest) -> CacheManifest:
    """The manifest in the folder, which must be of the same activations; without one, the new manifest, written."""
    folder.mkdir(parents=True, exist_ok=True)
    with manifest_lock(folder):
        return _found_or_written(folder, manifest)


def _found_or_written(folder: Path, manifest: CacheManifest) -> CacheManifest:
    if (folder / MANIFEST_FILENAME).exists():
        there = CacheManifest.read(folder)
        difference = there.difference(manifest)
        if difference is not None:
            raise ValueError(f"{folder} already holds another cache: {difference}. Choose another folder.")
        there.forget_lost(folder)
        return there
    free = shutil.disk_usage(folder).free
    if free < manifest.n_bytes:
        raise ValueError(
            f"The cache needs {manifest.n_bytes / 1e9:.3g} GB, but {folder} has {free / 1e9:.3g} GB free: cache fewer "
            "tokens, use dtype='bfloat16', or train on the models directly."
        )
    manifest.write(folder)
    return manifest


def _write_contexts(folder: Path, tokens: Int[Tensor, "batch pos"], token_mask: Bool[Tensor, "batch pos"]) -> None:
    """Which tokens are kept, and those around them."""
    path = folder / CONTEXTS_FILENAME
    with manifest_lock(folder):
        if not path.exists():
            contexts = {"tokens": tokens.cpu().to(TOKEN_DTYPE), "token_mask": token_mask.cpu()}
            save_tensors({name: tensor.contiguous() for name, tensor in contexts.items()}, path)


def _write_tokens(folder: Path, manifest: CacheManifest, prompts: Sequence[Prompts], shards: range) -> None:
    """The ids of all tokens that are kept."""
    written: dict[int, str] = {}
    for shard in shards:
        if manifest.part_problem(folder, shard, TOKENS) is not None:
            tokens, kept = prompts[shard]
            written[shard] = write_part(part_path(folder, shard, TOKENS), [tokens[kept].to(TOKEN_DTYPE)])
    if written:
        manifest.record(folder, TOKENS, written)


def _write_models(
    folder: Path,
    manifest: CacheManifest,
    loaders: Mapping[str, Callable[[], nn.Module]],
    prompts: Sequence[Prompts],
    shards: range,
    batch_size: int,
) -> None:
    """All of these models' files that are not there yet; the manifest says so as soon as one is complete."""
    files = [(shard, name) for shard in shards for name in loaders]
    missing = [file for file in files if manifest.part_problem(folder, *file) is not None]
    models = {name: loaders[name]() for name in dict.fromkeys(name for _, name in missing)}
    for shard, name in tqdm(missing, desc=f"Caching {' and '.join(loaders)} activations", unit="file", leave=False):
        path = part_path(folder, shard, name)
        batches = zip(*(part.split(batch_size) for part in prompts[shard]), strict=True)
        rows = (_rows(models[name], batch, manifest.hook_name, DTYPES[manifest.dtype], path) for batch in batches)
        manifest.record(folder, name, {shard: write_part(path, rows)})


@torch.no_grad()
def _rows(
    model: Any, prompts: Prompts, hook_name: str, dtype: torch.dtype, path: Path
) -> Float[Tensor, "token d_model"]:
    tokens, kept = prompts
    activations = activation_at(model, tokens.long(), hook_name)
    rows = activations[kept.to(activations.device)].to(dtype)
    if not torch.isfinite(rows).all():
        raise NonFiniteError(f"Activations for {path} are NaN or infinite: look at the model's dtype and at the hook.")
    return rows
