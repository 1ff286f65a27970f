"""What a run will need before anything is loaded: parameters, memory, disk, steps, time, and what would make it fit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sae_lens_crosscoder.models.sizes import ModelSize, model_size
from sae_lens_crosscoder.training.calibration import TimeEstimate, estimate_time, is_here
from sae_lens_crosscoder.training.edits import USABLE_SHARE, Capacity, Edit, helpful_edits, overfull
from sae_lens_crosscoder.training.layouts import GridLayout, grid_layouts
from sae_lens_crosscoder.training.memory import MemoryItem, bytes_of, memory_items, memory_of, n_parameters
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.scaling import ASSUMPTIONS, StepTime, hardware_of

GIB = 2**30


@dataclass(frozen=True)
class Plan:
    """What a run will need; `print` it. Bytes and seconds throughout."""

    n_params: dict[str, int]
    """Of every crosscoder by name; a lone one has the empty name."""
    models: tuple[ModelSize | None, ModelSize | None]
    """The base and the chat model, None where their config could not be reached."""
    memory: tuple[MemoryItem, ...]
    """What is held where at the peak."""
    capacity: dict[str, int | None]
    """The memory of each device in use, None where unknown."""
    edits: tuple[Edit, ...]
    """What saves memory where there is too little, the least harmful first; with `slc.edited` a config takes one."""
    n_steps: int
    n_cache_bytes: dict[str, int]
    """Disk for the activations of all training tokens, by precision, were they written down."""
    n_checkpoint_bytes: int
    """Disk for the trained crosscoders and for checkpoints: all, or those that are kept and the one being written."""
    time: TimeEstimate | None
    """None when it was not asked for, or when `device` is not in this machine and its figures were not given."""
    layouts: tuple[GridLayout, ...]
    """For several processes: every way to divide batch and latents among them. All else is what one process needs."""
    notes: tuple[str, ...]
    """What could not be found out, and what to do about it."""

    @property
    def n_bytes_needed(self) -> dict[str, int]:
        """The sum of `memory` on each device."""
        needed: Counter[str] = Counter()
        for item in self.memory:
            needed[item.device] += item.n_bytes
        return dict(needed)

    @property
    def fits(self) -> bool | None:
        """Whether every device has enough, with some to spare; None when what is known fits but not all is known."""
        if overfull(self.n_bytes_needed, self.capacity.get):
            return False
        return None if None in self.models or None in self.capacity.values() else True

    @property
    def fastest(self) -> GridLayout | None:
        """Of the layouts that fit, the one with the shortest estimated step."""
        timed = [layout for layout in self.layouts if layout.fits and layout.time is not None]
        return min(timed, key=lambda layout: sum(layout.time or ()), default=None)

    def __str__(self) -> str:
        parts = (_memory_lines(self), _layout_lines(self), ["", *_disk_and_time_lines(self)], _note_lines(self))
        return "\n".join(line for lines in parts for line in lines)


def plan(
    cfg: CrosscoderRunnerConfig,
    memory_gib: float | int | None = None,
    model_config: str | None = None,
    measure_time: bool = True,
    processes: int = 1,
    hardware: Mapping[str, Any] | None = None,
) -> Plan:
    """Plan a run: what it needs, whether that is there, and what to change; loads no model and downloads no weights.

    Args:
        memory_gib: memory of each GPU, or of the CPU when the config uses none; by default what this machine has.
        model_config: a folder with a transformers `config.json`, for models whose own cannot be reached.
        processes: how many train together, each with devices of its own; what each needs and sends is in `layouts`.
        hardware: figures of `training.scaling.Hardware` to estimate time from, by name; what is missing is measured
            here, and of the link between processes assumed.
        measure_time: train for a few seconds on `cfg.device`, to estimate the run's time.

    Raises:
        ValueError: for a model, a layer or widths that training would refuse, or a memory that is none.
    """
    if memory_gib is not None and memory_gib <= 0:
        raise ValueError(f"memory_gib={memory_gib} must be positive: it is what the device has, in GiB.")
    models, notes = _model_sizes(cfg, model_config)
    capacity = _capacity(cfg, memory_gib)
    memory = memory_items(cfg, models)
    can_measure = measure_time and is_here(cfg.device)
    is_timed = hardware_of(hardware or {}) is not None or can_measure
    time = estimate_time(cfg, models, hardware) if is_timed else None
    if measure_time and time is None:
        notes.append(
            f"No time is claimed: device={cfg.device!r} is not in this machine. Plan there, override it, or give all "
            "figures of its hardware."
        )
    n_values = cfg.training_tokens * cfg.sae.d_in
    n_bytes = sum(n_parameters(sae) * bytes_of(sae.dtype) for sae in cfg.crosscoder_configs.values())
    n_checkpoints = 0 if cfg.checkpoint_path is None else cfg.n_checkpoints + int(cfg.save_final_checkpoint)
    if cfg.n_checkpoints_kept is not None:
        n_checkpoints = min(n_checkpoints, cfg.n_checkpoints_kept + 1)
    buffer = cfg.n_batches_in_buffer * cfg.context_size * cfg.sae.d_in * bytes_of(cfg.dtype)
    return Plan(
        n_params={name: n_parameters(sae) for name, sae in cfg.crosscoder_configs.items()},
        models=models,
        memory=tuple(memory),
        capacity={name: capacity(name) for name in dict.fromkeys(item.device for item in memory)},
        edits=tuple(helpful_edits(cfg, models, capacity)),
        n_steps=cfg.training_tokens // cfg.train_batch_size_tokens,
        n_cache_bytes={dtype: n_values * bytes_of(dtype) for dtype in ("bfloat16", "float32")},
        # A checkpoint holds the weights, both of Adam's moments and the shuffling buffer.
        n_checkpoint_bytes=n_checkpoints * (3 * n_bytes + buffer) + n_bytes * int(cfg.output_path is not None),
        time=time,
        layouts=tuple(
            grid_layouts(cfg, processes, models, capacity, {} if time is None else time.hardware)
            if processes > 1
            else ()
        ),
        notes=tuple(notes),
    )


def _model_sizes(
    cfg: CrosscoderRunnerConfig, model_config: str | None
) -> tuple[tuple[ModelSize | None, ModelSize | None], list[str]]:
    notes: list[str] = []

    def size_of(name: str) -> ModelSize | None:
        try:
            size = model_size(name, cfg.hook_name, cfg.model_class_name, model_config)
        except OSError as error:
            notes.append(
                f"{name} is left out of memory and time, because its config cannot be read "
                f"({str(error).splitlines()[0]}). Put the config.json of such a model into a folder and give that as "
                "model_config."
            )
            return None
        return size

    models = (size_of(cfg.model_name), size_of(cfg.chat_model_name))
    _refuse_wrong_widths(cfg, models)
    return models, notes


def _refuse_wrong_widths(cfg: CrosscoderRunnerConfig, models: Sequence[ModelSize | None]) -> None:
    if "hook_resid" not in cfg.hook_name:
        return  # other hooks have widths of their own, which only loading tells
    for size, width in zip(models, cfg.sae.d_models, strict=True):
        if size is not None and size.d_model != width:
            raise ValueError(
                f"The crosscoder is configured for models of widths {tuple(cfg.sae.d_models)}, but at {cfg.hook_name} "
                f"{size.name} is {size.d_model} wide: set d_models to the models' widths."
            )


def _capacity(cfg: CrosscoderRunnerConfig, memory_gib: float | int | None) -> Capacity:
    if memory_gib is None:
        return memory_of
    n_bytes = int(memory_gib * GIB)
    devices = (cfg.device, cfg.llm_device, cfg.chat_device, cfg.act_store_device)
    only_cpu = all(device is None or torch.device(device).type == "cpu" for device in devices)
    # The other machine's main memory is unknown, unless it is what was given.
    return lambda name: None if name == "cpu" and not only_cpu else n_bytes


def _memory_lines(plan: Plan) -> list[str]:
    verdict = {True: "It fits.", False: "It does not fit.", None: "What is known of it fits; not everything is known."}
    lines = [f"crosscoder{f' {name}' * bool(name)}: {n:,} parameters" for name, n in plan.n_params.items()]
    lines += [
        f"{size.name}: {size.n_params:,} parameters, {size.n_params_to_hook:,} of them in blocks up to the hook"
        for size in plan.models
        if size is not None
    ]
    for device, needed in plan.n_bytes_needed.items():
        lines += ["", f"memory on {device} at the peak"]
        lines += [f"  {item.what:<40} {_size(item.n_bytes):>12}" for item in plan.memory if item.device == device]
        capacity = plan.capacity[device]
        has = "of unknown size" if capacity is None else f"of {USABLE_SHARE:.0%} of {_size(capacity)}"
        lines.append(f"  {'total':<40} {_size(needed):>12}  {has}")
    lines += ["", verdict[plan.fits]]
    if plan.edits:
        lines.append("What would help, the least harmful first:")
    return lines + [_edit_line(edit) for edit in plan.edits]


def _layout_lines(plan: Plan) -> list[str]:
    if not plan.layouts:
        return []
    n = plan.layouts[0].n_data * plan.layouts[0].n_latents
    lines = ["", f"{n} processes (torchrun), of which each needs at the peak, and sends and takes in a step"]
    for layout in plan.layouts:
        needed = ", ".join(f"{_size(n_bytes)} on {device}" for device, n_bytes in layout.n_bytes_needed.items())
        verdict = "" if layout.fits else ": does not fit"
        verdict = ": the fastest that fits" if layout is plan.fastest else verdict
        takes = "" if layout.time is None else f"; {_step_text(layout.time)}"
        lines.append(f"  --latent_shards {layout.n_latents:<4} {needed}; {_size(layout.n_bytes_sent)}{takes}{verdict}")
    if plan.time is not None:
        sources = dict.fromkeys(hardware.source for hardware in plan.time.hardware.values())
        lines += ["  assumed of a step's time:", *(f"    {text}" for text in (*sources, *ASSUMPTIONS))]
    return lines


def _step_text(time: StepTime) -> str:
    """A step's time and its parts.

    >>> _step_text(StepTime(0.02, 0.01, 0.003, 0.0005, 0.0))
    '33.5 ms (product 20, memory 10, fixed 3, link 0.5, latency 0)'
    """
    parts = ", ".join(f"{name} {1e3 * seconds:.3g}" for name, seconds in time._asdict().items())
    return f"{1e3 * time.seconds:.3g} ms ({parts})"


def _edit_line(edit: Edit) -> str:
    flags = " ".join(f"--{name} {value}" for name, value in edit.changes.items())
    enough = "fits" if edit.fits else "not enough"
    return f"  {flags}\n      saves {_size(edit.n_bytes_saved)}: {enough}. It costs {edit.costs}."


def _disk_and_time_lines(plan: Plan) -> list[str]:
    cache = ", ".join(f"{_size(n)} in {dtype}" for dtype, n in plan.n_cache_bytes.items())
    lines = [
        f"steps: {plan.n_steps:,}",
        f"disk: {_size(plan.n_checkpoint_bytes)} for checkpoints and results; a cache of all activations would take "
        f"{cache}",
    ]
    time = plan.time
    if time is None:
        return lines
    lines.append(f"time: about {_duration(time.step_seconds * time.n_steps)} of steps ({time.how})")
    if time.harvest_seconds is not None and time.seconds is not None:
        lines.append(
            f"      and about {_duration(time.harvest_seconds)} or more of the models' passes (extrapolated from one "
            f"measured matrix product); together about {_duration(time.seconds)}"
        )
    lines.append("      without downloads, tokenising, checkpoints, evaluations and the diagnosis afterwards")
    return lines


def _note_lines(plan: Plan) -> list[str]:
    return ["", *(f"note: {note}" for note in plan.notes)] if plan.notes else []


def _size(n_bytes: int) -> str:
    """Bytes as a person reads them.

    >>> _size(1536), _size(5 * 2**30)
    ('1.50 KiB', '5.00 GiB')
    """
    size, units = float(n_bytes), ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while abs(size) >= 1024 and len(units) > 1:
        size /= 1024
        units.pop(0)
    return f"{size:.2f} {units[0]}"


def _duration(seconds: float) -> str:
    """Seconds as a person reads them.

    >>> _duration(5.0), _duration(600.0), _duration(36_000.0)
    ('5.0 s', '10.0 min', '10.0 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"
