"""Config changes that make a run fit into memory, the least harmful first."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from sae_lens_crosscoder.models.devices import device_name
from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.planning.memory import bytes_of, bytes_per_device, memory_items
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

USABLE_SHARE = 0.9  # the rest goes to CUDA's context or to Python, and to gaps between allocations
_MOST_HALVINGS = 5  # of a number: a run a hundred times smaller is another run
_SMALLEST_BATCH = 128  # a step on fewer tokens is mostly overhead
_LEAST_LATENTS_PER_ACTIVE = 4  # with fewer, a code is hardly sparse

Changes = dict[str, Any]
Capacity = Callable[[str], int | None]  # bytes by device name, None where unknown


class Suggestion(NamedTuple):
    """A change of config fields, with its price and its effect."""

    changes: Changes
    """Field names and new values, for `cfg.replace`; a crosscoder's field changes in every crosscoder."""
    price: str
    n_bytes_saved: int
    """Saved on the devices that have too little memory."""
    fits: bool  # after this change

    def __str__(self) -> str:
        flags = " ".join(f"--{name} {value}" for name, value in self.changes.items())
        verdict = "fits" if self.fits else "not enough"
        return f"  {flags}\n      saves {self.n_bytes_saved / 2**30:.3f} GiB: {verdict}. Price: {self.price}."


def overfull_devices(needed: Mapping[str, int], capacity: Capacity) -> list[str]:
    """Devices with too little memory; a device of unknown size is assumed to have enough."""
    return [name for name, n_bytes in needed.items() if n_bytes > USABLE_SHARE * (capacity(name) or math.inf)]


def suggest(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None], capacity: Capacity) -> list[Suggestion]:
    """Suggest changes that save memory on overfull devices, each as mild as suffices, the least harmful first.

    If no single change suffices, combinations that do come last: first one that needs no second GPU, if there is one.
    """
    needed = bytes_per_device(memory_items(cfg, models))
    overfull = overfull_devices(needed, capacity)
    if not overfull:
        return []
    options = _options(cfg)

    def evaluate(changes: Changes) -> Suggestion:
        after = bytes_per_device(memory_items(cfg.replace(**changes), models))
        saved = sum(needed[name] - after[name] for name in overfull)
        price = "; ".join(options[name][0] for name in changes)
        return Suggestion(changes, price, saved, not overfull_devices(after, capacity))

    def mildest(name: str, changes: Changes) -> Suggestion:
        suggestions = [evaluate(changes | {name: value}) for value in options[name][1]]
        return next((suggestion for suggestion in suggestions if suggestion.fits), suggestions[-1])

    def combine(names: list[str]) -> list[Suggestion]:
        best = Suggestion({}, "", 0, fits=False)
        for name in names:
            best = max(best, mildest(name, best.changes), key=lambda suggestion: suggestion.n_bytes_saved)
            if best.fits:
                break
        for name in reversed(best.changes):  # later changes may have made this one superfluous
            fewer = evaluate({other: value for other, value in best.changes.items() if other != name})
            best = fewer if fewer.fits else best
        return [best] if best.fits else []

    suggestions = [single for name in options if (single := mildest(name, {})).n_bytes_saved > 0]
    sufficient = [single.changes for single in suggestions if single.fits]
    if all("chat_device" in changes for changes in sufficient):
        suggestions += combine([name for name in options if name != "chat_device"])
    if not sufficient:
        suggestions += [combined for combined in combine(list(options)) if combined not in suggestions]
    return suggestions


def _options(cfg: CrosscoderRunnerConfig) -> dict[str, tuple[str, list[Any]]]:
    """By field, the least harmful first: the price of changing it, and new values from the mildest to the strongest."""
    saes: list[Any] = list(cfg.crosscoder_configs.values())
    batch, d_sae = cfg.train_batch_size_tokens, saes[0].d_sae
    most_active = max(getattr(sae, "k_max", None) or getattr(sae, "k", 1) for sae in saes)
    dense = any(sae.training_step == "dense" for sae in saes) and all(sae.has_sparse_step for sae in saes)
    stored_on_gpu = cfg.act_store_device != "cpu" and torch.device(cfg.device).type != "cpu"
    most_exclusive = max(0 if sae.partition is None else sae.partition.n_exclusive for sae in saes)
    widest_inner = max(max(getattr(sae, "matryoshka_widths", ()), default=0) for sae in saes)
    least = max(_LEAST_LATENTS_PER_ACTIVE * most_active, 2 * most_exclusive, widest_inner + 1)
    widths = _halvings(d_sae, least) * all(sae.d_sae == d_sae for sae in saes)
    options: dict[str, tuple[str, list[Any]]] = {
        "training_step": ("nothing: the same step, computed sparsely", ["sparse"] * dense),
        "store_batch_size_prompts": ("slower harvesting", _halvings(cfg.store_batch_size_prompts, 1)),
        "eval_batch_size_prompts": ("slower evaluations", _halvings(cfg.eval_batch_size_prompts or 0, 1)),
        "act_store_device": ("time: every batch travels to the device", ["cpu"] * stored_on_gpu),
        "chat_device": ("a second GPU", _other_gpus(cfg)),
        "n_batches_in_buffer": ("shuffling", _halvings(cfg.n_batches_in_buffer, batch / cfg.context_size)),
        "dtype": ("precision of the buffered activations", ["bfloat16"] * (bytes_of(cfg.dtype) > 2)),
        "model_dtype": ("precision of the activations", ["bfloat16"] * (bytes_of(cfg.model_dtype) > 2)),
        "train_batch_size_tokens": ("noisier steps, and more of them", _halvings(batch, _SMALLEST_BATCH)),
        "d_sae": ("latents: a smaller crosscoder finds less", widths),
    }
    return {name: option for name, option in options.items() if option[1]}


def _halvings(value: int, smallest: float | int) -> list[Any]:
    """Half of a number, a quarter, and so on, no smaller than `smallest`."""
    return [value >> n for n in range(1, _MOST_HALVINGS + 1) if value >> n >= max(smallest, 1)]


def _other_gpus(cfg: CrosscoderRunnerConfig) -> list[str]:
    """GPUs that the chat model could move to; two are assumed if the GPUs are those of another machine."""
    used = device_name(cfg.chat_device or cfg.llm_device or cfg.device)
    n_gpus = torch.cuda.device_count() or 2
    return [f"cuda:{i}" for i in range(n_gpus) if f"cuda:{i}" != used] if used.startswith("cuda") else []
