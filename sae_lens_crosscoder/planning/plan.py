"""What a run will need before anything is loaded: parameters, memory, disk, steps, time, and what would make it fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sae_lens_crosscoder.models.sizes import ModelSize, model_size
from sae_lens_crosscoder.planning.calibration import estimate_time, is_here
from sae_lens_crosscoder.planning.edits import Capacity, helpful_edits
from sae_lens_crosscoder.planning.layouts import grid_layouts
from sae_lens_crosscoder.planning.memory import bytes_of, memory_items, memory_of, n_parameters
from sae_lens_crosscoder.planning.planned import Plan
from sae_lens_crosscoder.planning.scaling import hardware_of
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig

GIB = 2**30


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
) -> tuple[tuple[ModelSize | None, ...], list[str]]:
    """Of the models that the run loads, and what could not be found out."""
    notes: list[str] = []
    if cfg.use_cached_activations:
        return (), notes

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
