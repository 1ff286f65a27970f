"""What a run will need, in numbers and in words."""

from collections import Counter
from dataclasses import dataclass

from sae_lens_crosscoder.models.sizes import ModelSize
from sae_lens_crosscoder.planning.calibration import TimeEstimate
from sae_lens_crosscoder.planning.edits import USABLE_SHARE, Edit, overfull
from sae_lens_crosscoder.planning.layouts import GridLayout
from sae_lens_crosscoder.planning.memory import MemoryItem
from sae_lens_crosscoder.planning.scaling import ASSUMPTIONS, StepTime


@dataclass(frozen=True)
class Plan:
    """What a run will need; `print` it. Bytes and seconds throughout."""

    n_params: dict[str, int]
    """Of every crosscoder by name; a lone one has the empty name."""
    models: tuple[ModelSize | None, ...]
    """The base and the chat model, None where their config could not be reached; empty for a run on cached
    activations."""
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
    rows = [["--latent_shards", *(f"on {device}" for device in plan.layouts[0].n_bytes_needed), "sent"]]
    rows[0] += [] if plan.time is None else ["step ms", *(f"{name} ms" for name in StepTime._fields)]
    for layout in plan.layouts:
        numbers = [*layout.n_bytes_needed.values(), layout.n_bytes_sent]
        times = [] if layout.time is None else [layout.time.seconds, *layout.time]
        rows.append([str(layout.n_latents), *map(_size, numbers), *(f"{1e3 * seconds:,.2f}" for seconds in times)])
    verdicts = ["", *("" if layout.fits else "does not fit" for layout in plan.layouts)]
    if plan.fastest is not None:
        verdicts[1 + plan.layouts.index(plan.fastest)] = "the fastest that fits"
    lines = ["", f"{n} processes (torchrun): memory of each at the peak, and what a step sends and takes"]
    lines += [f"  {cells}  {verdict}".rstrip() for cells, verdict in zip(_columns(rows), verdicts, strict=True)]
    if plan.time is not None:
        sources = dict.fromkeys(hardware.source for hardware in plan.time.hardware.values())
        lines += ["  assumed of a step's time:", *(f"    {text}" for text in (*sources, *ASSUMPTIONS))]
    return lines


def _columns(rows: list[list[str]]) -> list[str]:
    """A line per row, with its cells to the right of columns that are as wide as they need to be.

    >>> _columns([["n", "sent"], ["16", "3 GiB"]])
    [' n   sent', '16  3 GiB']
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


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
