"""Changes to a config that make a run fit into memory, the least harmful first."""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.planning.memory import bytes_of, device_name, memory_items
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

# The rest goes to CUDA's context or to Python, and to gaps between what was allocated and freed.
USABLE_SHARE = 0.9
# Numbers are halved at most this often: a run a hundred times smaller is another run.
_MOST_HALVINGS = 5
# A step on fewer tokens is mostly overhead.
_SMALLEST_BATCH = 128
# A code of which more than a quarter is on is hardly sparse.
_LEAST_LATENTS_PER_ACTIVE = 4

Changes = dict[str, Any]
Capacity = Callable[[str], int | None]  # bytes by device name, None where unknown


@dataclass(frozen=True)
class Edit:
    """A change of config fields, and what it does."""

    changes: Changes
    """Field names and new values, for `edited`; those of a crosscoder's fields go for every crosscoder."""
    costs: str
    """What is lost by it."""
    n_bytes_saved: int
    """On the devices that have too little."""
    fits: bool
    """Whether it is enough."""


@dataclass(frozen=True)
class _Kind:
    """A field to change, what that costs, and its values from the mildest to the strongest."""

    field: str
    costs: str
    values: list[Any]


def edited(cfg: CrosscoderRunnerConfig, changes: Mapping[str, Any]) -> CrosscoderRunnerConfig:
    """The config with other values in some fields, its own or its crosscoders'."""
    own = {f.name for f in fields(cfg)}
    for_sae = {name: value for name, value in changes.items() if name not in own}
    saes = {name: replace(sae, **for_sae) for name, sae in cfg.crosscoder_configs.items()}
    crosscoders: Changes = {"sae": saes[""]} if cfg.saes is None else {"sae": None, "saes": saes}
    changed = replace(cfg, **crosscoders, **{name: value for name, value in changes.items() if name in own})
    changed.checkpoint_path = cfg.checkpoint_path  # to which the constructor appended a second random id
    return changed


def bytes_per_device(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None]) -> Counter[str]:
    """What a run needs on each device."""
    needed: Counter[str] = Counter()
    for item in memory_items(cfg, models):
        needed[item.device] += item.n_bytes
    return needed


def overfull(needed: Mapping[str, int], capacity: Capacity) -> list[str]:
    """The devices that need more than they have to give; those of unknown size are taken to have enough."""
    return [name for name, n_bytes in needed.items() if n_bytes > USABLE_SHARE * (capacity(name) or math.inf)]


def helpful_edits(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None], capacity: Capacity) -> list[Edit]:
    """Every change that saves memory where there is too little, as far as needed, the least harmful first.

    When none is enough alone, they are followed by several of them together that are, if there are such; as a second
    GPU may not be there, first by such as do without.
    """
    needed = bytes_per_device(cfg, models)
    too_full = overfull(needed, capacity)
    if not too_full:
        return []
    kinds = [kind for kind in _kinds(cfg) if kind.values]
    costs = {kind.field: kind.costs for kind in kinds}

    def tried(changes: Changes) -> Edit:
        after = bytes_per_device(edited(cfg, changes), models)
        saved = sum(needed[name] - after[name] for name in too_full)
        return Edit(changes, "; ".join(costs[name] for name in changes), saved, not overfull(after, capacity))

    def mildest(kind: _Kind, others: Changes) -> Edit:
        edits = [tried(others | {kind.field: value}) for value in kind.values]
        return next((edit for edit in edits if edit.fits), edits[-1])

    def together(kinds: list[_Kind]) -> list[Edit]:
        edit = Edit({}, "", 0, fits=False)
        for kind in kinds:
            edit = max(edit, mildest(kind, edit.changes), key=lambda edit: edit.n_bytes_saved)
            if edit.fits:
                break
        for field in reversed(edit.changes):  # what the later ones made superfluous, the most harmful first
            less = tried({name: value for name, value in edit.changes.items() if name != field})
            edit = less if less.fits else edit
        return [edit] if edit.fits else []

    found = [edit for kind in kinds if (edit := mildest(kind, {})).n_bytes_saved > 0]
    fitting = [edit.changes.keys() for edit in found if edit.fits]
    if not any("chat_device" not in names for names in fitting):
        found += together([kind for kind in kinds if kind.field != "chat_device"])
    if not fitting:
        found += [edit for edit in together(kinds) if edit not in found]
    return found


def _kinds(cfg: CrosscoderRunnerConfig) -> Iterator[_Kind]:
    """What could be changed, the least harmful first."""
    saes: list[Any] = list(cfg.crosscoder_configs.values())
    if any(sae.training_step == "dense" for sae in saes):
        yield _Kind("training_step", "nothing: the same step, computed sparsely", ["sparse"])
    yield _Kind("store_batch_size_prompts", "slower harvesting", _halvings(cfg.store_batch_size_prompts, 1))
    if torch.device(cfg.device).type != "cpu":
        if cfg.act_store_device != "cpu":
            yield _Kind("act_store_device", "time: every batch travels to the device", ["cpu"])
        yield _Kind("chat_device", "a second GPU", _other_devices(cfg))
    batch = cfg.train_batch_size_tokens
    contexts_in_batch = math.ceil(batch / cfg.context_size)
    yield _Kind("n_batches_in_buffer", "shuffling", _halvings(cfg.n_batches_in_buffer, contexts_in_batch))
    if bytes_of(cfg.dtype) > 2:
        yield _Kind("dtype", "precision of the buffered activations", ["bfloat16"])
    if bytes_of(cfg.model_dtype) > 2:
        yield _Kind("model_dtype", "precision of the activations", ["bfloat16"])
    yield _Kind("train_batch_size_tokens", "noisier steps, and more of them", _halvings(batch, _SMALLEST_BATCH))
    if len({sae.d_sae for sae in saes}) == 1:
        most_active = max(getattr(sae, "k_max", None) or getattr(sae, "k", 1) for sae in saes)
        fewest = math.ceil(_LEAST_LATENTS_PER_ACTIVE * most_active)
        yield _Kind("d_sae", "latents: a smaller crosscoder finds less", _halvings(saes[0].d_sae, fewest))


def _halvings(value: int, smallest: int) -> list[Any]:
    """Half of a number, a quarter, and so on, no smaller than `smallest`.

    >>> _halvings(100, 30)
    [50, 30]
    """
    smallest = max(smallest, value // 2**_MOST_HALVINGS)
    values: list[Any] = []
    while value > smallest:
        value = max(value // 2, smallest)
        values.append(value)
    return values


def _other_devices(cfg: CrosscoderRunnerConfig) -> list[str]:
    """A second GPU for the chat model, if there is one or if the GPUs are those of another machine."""
    used = device_name(cfg.chat_device or cfg.llm_device or cfg.device)
    n_here = torch.cuda.device_count()
    return [f"cuda:{i}" for i in range(n_here or 2) if f"cuda:{i}" != used] if used.startswith("cuda") else []
