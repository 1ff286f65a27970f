"""Plan a run from its config: no model is loaded, no weights are downloaded."""

from dataclasses import dataclass
from datetime import timedelta

import torch

from sae_lens_crosscoder.activations.cache.rows import DTYPES, bytes_of_row
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.models.devices import is_available, memory_of
from sae_lens_crosscoder.models.sizes import ModelSize, model_size
from sae_lens_crosscoder.planning.memory import MemoryItem, bytes_of, bytes_per_device, memory_items, n_parameters
from sae_lens_crosscoder.planning.suggestions import USABLE_SHARE, Suggestion, overfull_devices, suggest
from sae_lens_crosscoder.planning.timing import TimeEstimate, estimate_time
from sae_lens_crosscoder.stacking import hook_of_model
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.validation import slow_precisions

_GIB = 2**30
_PYTHON_BYTES = _GIB // 2  # of a process with torch, SAELens and TransformerLens, before anything is loaded
_VERDICTS = {True: "It fits.", False: "It does not fit.", None: "The known part fits; some sizes are unknown."}


@dataclass(frozen=True)
class Plan:
    """Requirements of a run, in bytes and seconds; `print` shows them as text."""

    n_params: dict[str, int]
    """Parameters of every crosscoder by name; the name of a single crosscoder is empty."""
    models: tuple[ModelSize | None, ...]
    """The models, base first, None if the config could not be read; empty for a run on cached activations."""
    memory: tuple[MemoryItem, ...]
    capacity: dict[str, int | None]
    """Memory of each device in use, None if unknown."""
    suggestions: tuple[Suggestion, ...]
    """Changes that save memory where there is too little, for `cfg.replace`."""
    n_steps: int
    n_cache_bytes: dict[str, int]
    """Disk for a cache of all training activations, by precision."""
    n_checkpoint_bytes: int  # on disk, results included
    time: TimeEstimate | None
    notes: tuple[str, ...]

    @property
    def n_bytes_needed(self) -> dict[str, int]:
        """The sum of `memory` on each device."""
        return bytes_per_device(self.memory)

    @property
    def n_bytes_resident(self) -> int:
        """Main memory of the whole process at its peak, as the system counts it: with Python and its libraries."""
        return _PYTHON_BYTES + self.n_bytes_needed.get("cpu", 0)

    @property
    def fits(self) -> bool | None:
        """True if every device has enough memory; None if the known part fits and some sizes are unknown."""
        if overfull_devices(self.n_bytes_needed, self.capacity.get):
            return False
        return None if None in self.models or None in self.capacity.values() else True

    def __str__(self) -> str:
        return "\n".join(_lines(self))


@validate_arguments
def plan(
    cfg: CrosscoderRunnerConfig,
    memory_gib: float | int | None = None,
    model_config: str | None = None,
    measure_time: bool = True,
) -> Plan:
    """Plan a run: memory, disk and time, a verdict on whether it fits, and changes that would make it fit.

    Args:
        memory_gib: memory of each GPU, or of the CPU if the config uses no GPU; by default the memory of this machine.
        model_config: a folder with a transformers `config.json`, for models whose config cannot be downloaded.
        measure_time: train for a few seconds on `cfg.device` to estimate the run's time.
    """
    if memory_gib is not None and memory_gib <= 0:
        raise ValueError(f"memory_gib={memory_gib} must be positive: give the memory of the device in GiB.")
    models, notes = _model_sizes(cfg, model_config)
    devices = (cfg.device, cfg.llm_device, cfg.chat_device, cfg.act_store_device)
    only_cpu = all(device is None or torch.device(device).type == "cpu" for device in devices)

    def capacity(name: str) -> int | None:
        if memory_gib is None:
            return memory_of(name)
        # The main memory of another machine is unknown unless memory_gib gives it.
        return None if name == "cpu" and not only_cpu else int(memory_gib * _GIB)

    notes += slow_precisions(cfg)
    memory = memory_items(cfg, models)
    can_measure = measure_time and is_available(cfg.device)
    if measure_time and not can_measure:
        notes.append(f"No time estimate: this machine has no device {cfg.device!r}. Plan on the one that will train.")
    buffer = cfg.n_batches_in_buffer * cfg.context_size * cfg.sae.d_in * bytes_of(cfg.dtype)
    weights = sum(n_parameters(sae) * bytes_of(sae.dtype) for sae in cfg.crosscoder_configs.values())
    n_checkpoints = 0 if cfg.checkpoint_path is None else cfg.n_checkpoints + int(cfg.save_final_checkpoint)
    if cfg.n_checkpoints_kept is not None:
        n_checkpoints = min(n_checkpoints, cfg.n_checkpoints_kept + 1)
    return Plan(
        n_params={name: n_parameters(sae) for name, sae in cfg.crosscoder_configs.items()},
        models=models,
        memory=tuple(memory),
        capacity={item.device: capacity(item.device) for item in memory},
        suggestions=tuple(suggest(cfg, models, capacity)),
        n_steps=cfg.training_tokens // cfg.train_batch_size_tokens,
        n_cache_bytes={name: cfg.training_tokens * bytes_of_row(tuple(cfg.sae.d_models), name) for name in DTYPES},
        # A checkpoint contains weights, Adam's two moments and the buffer.
        n_checkpoint_bytes=n_checkpoints * (3 * weights + buffer) + weights * int(cfg.output_path is not None),
        time=estimate_time(cfg) if can_measure else None,
        notes=tuple(notes),
    )


def _model_sizes(cfg: CrosscoderRunnerConfig, folder: str | None) -> tuple[tuple[ModelSize | None, ...], list[str]]:
    """Sizes of the models that the run loads, and a note for each model whose config cannot be read."""
    sizes: list[ModelSize | None] = []
    notes: list[str] = []
    for m, name in enumerate(() if cfg.use_cached_activations else cfg.model_names):
        hook_name = hook_of_model(cfg.hook_name, m)
        try:
            size = model_size(name, hook_name, cfg.model_class_name, folder)
        except OSError as error:
            size, reason = None, str(error).splitlines()[0]
            notes.append(
                f"Memory and time leave out {name}: its config cannot be read ({reason}). Put a config.json of such a "
                "model into a folder, and give that folder as model_config."
            )
        width = cfg.sae.d_models[m * len(cfg.hook_names or (0,))]
        # The widths at other hooks are known only after loading.
        if size is not None and size.d_model != width and "hook_resid" in hook_name:
            raise ValueError(
                f"The crosscoder expects models of widths {tuple(cfg.sae.d_models)}, but {name} is {size.d_model} wide "
                f"at {hook_name}: set d_models to the models' widths."
            )
        sizes.append(size)
    return tuple(sizes), notes


def _lines(plan: Plan) -> list[str]:
    lines = [f"crosscoder{f' {name}' * bool(name)}: {n:,} parameters" for name, n in plan.n_params.items()]
    lines += [
        f"{size.name}: {size.n_params:,} parameters, {size.n_params_to_hook:,} in blocks up to the hook"
        for size in plan.models
        if size is not None
    ]
    for device, needed in plan.n_bytes_needed.items():
        lines.append(f"\nmemory on {device} at the peak, in GiB")
        lines += [f"  {item.name:<40} {item.n_bytes / _GIB:>9.3f}" for item in plan.memory if item.device == device]
        capacity = plan.capacity[device]
        available = "an unknown size" if capacity is None else f"{USABLE_SHARE:.0%} of {capacity / _GIB:.3f}"
        lines.append(f"  {'total':<40} {needed / _GIB:>9.3f}  of {available}")
    lines.append(f"\nresident memory of the process, with Python: about {plan.n_bytes_resident / _GIB:.1f} GiB")
    lines.append(f"\n{_VERDICTS[plan.fits]}")
    lines += ["Changes that would help, the least harmful first:"] * bool(plan.suggestions)
    lines += [str(suggestion) for suggestion in plan.suggestions]
    cache = ", ".join(f"{n / _GIB:.3f} GiB in {dtype}" for dtype, n in plan.n_cache_bytes.items())
    checkpoints = f"{plan.n_checkpoint_bytes / _GIB:.3f} GiB for checkpoints and results"
    lines += [f"\nsteps: {plan.n_steps:,}", f"disk: {checkpoints}; a cache of all activations: {cache}"]
    if plan.time is not None:
        steps = timedelta(seconds=round(plan.n_steps * plan.time.step_seconds))
        lines.append(f"time (h:mm:ss): about {steps} of training steps ({plan.time.basis}),")
        lines.append("      without the models' forward passes, downloads, checkpoints, evaluations and the diagnosis")
    return lines + [f"note: {note}" for note in plan.notes]
