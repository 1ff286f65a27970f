"""Checks of folders and devices before any long work."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from sae_lens.constants import DTYPE_MAP

from sae_lens_crosscoder.data.packing import PackingRule
from sae_lens_crosscoder.models.devices import is_slow_in_bfloat16

_MOST_POSITIONS = 2**24  # SAELens lists them


def validate_writable(folder: str | None) -> None:
    """Raise a ValueError if `folder` cannot be created or written to."""
    if folder is None:
        return
    path = Path(folder).absolute()
    nearest = next(parent for parent in (path, *path.parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest) as file:
            file.write(b"0")
    except OSError as error:
        raise ValueError(
            f"Cannot write to {folder!r}: {nearest} is not a writable folder ({error.strerror})."
        ) from error


def validate_no_folder_at(*files: Path) -> None:
    """Raise a ValueError if a folder has the name of a file that will be written."""
    for file in files:
        if file.is_dir():
            raise ValueError(f"Cannot write {str(file)!r}: it is a folder. Remove it, or give another output_path.")


def validate_dtype(name: str, dtype: str) -> None:
    """Raise a ValueError if a field is not the name of a floating-point precision."""
    if dtype not in DTYPE_MAP:
        raise ValueError(f"{name}={dtype!r} is not one of {tuple(DTYPE_MAP)[:4]}.")


def validated_slice(seqpos_slice: Sequence[int | None], context_size: int) -> tuple[int | None, ...]:
    """The slice of positions as a tuple; a ValueError for one without 1 to 3 entries, or of too many positions."""
    if not 1 <= len(seqpos_slice) <= 3:
        raise ValueError(f"seqpos_slice={seqpos_slice} must have 1 to 3 entries: start, stop and step.")
    if context_size > _MOST_POSITIONS:
        raise ValueError(f"context_size={context_size} must be at most {_MOST_POSITIONS}.")
    return tuple(seqpos_slice)


def validate_device(device: str | None) -> None:
    """Raise a ValueError if this torch cannot use the device."""
    if device is None:
        return
    try:
        torch.empty(0, device=device)
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f"device={device!r} cannot be used here: {str(error).splitlines()[0]}") from error


def stream_ended(n_tokens: int, n_wanted: int) -> ValueError:
    """Error for a stream of activations that ended before the run did."""
    return ValueError(
        f"The activations ended after {n_tokens} tokens, but total_training_samples={n_wanted}. Give a longer (or "
        "repeating) stream, or train on fewer tokens."
    )


def slow_precisions(cfg: Any) -> list[str]:
    """A sentence on each setting of a run that multiplies in bfloat16 on a processor without instructions for it."""
    base_device = cfg.llm_device or cfg.device
    devices: dict[str, list[str]] = {}
    if cfg.model_dtype == "bfloat16" and not cfg.use_cached_activations:
        devices["model_dtype"] = [base_device, cfg.chat_device or base_device]
    if any(sae.dtype == "bfloat16" for sae in cfg.crosscoder_configs.values()):
        devices["sae.dtype"] = [cfg.device]
    return [
        f"{name}='bfloat16' is about 100 times as slow as float32 on this CPU, which has neither AMX nor AVX512-BF16. "
        f"Set {name}='float32', or train on a GPU."
        for name, names in devices.items()
        if any(is_slow_in_bfloat16(device) for device in names)
    ]


def validate_data(cfg: Any) -> None:
    """Raise a ValueError if a runner config's fields for models and data do not fit each other."""
    if cfg.mix is not None and cfg.dataset_path:
        raise ValueError(f"Give either a mix or dataset_path={cfg.dataset_path!r}, not both.")
    if cfg.mix is not None and cfg.use_chat_formatting:
        raise ValueError(
            "use_chat_formatting=True applies to dataset_path. In a mix, kind='conversations' makes a source's "
            "rows be rendered with the chat template."
        )
    if cfg.chat_model_name is None and _has_answers(cfg):
        raise ValueError(
            "kind='answers' needs a chat model beside the base model, but chat_model_name=None. Use another kind."
        )
    if cfg.more_model_names and cfg.chat_model_name is None:
        raise ValueError(
            f"more_model_names={cfg.more_model_names} come after a chat model, but chat_model_name=None. Name the "
            "first of them as chat_model_name."
        )
    if cfg.more_model_names and _has_answers(cfg):
        raise ValueError(
            f"kind='answers' is for two models, but more_model_names={cfg.more_model_names}. Use another kind."
        )
    if cfg.align_tokens and (cfg.token_replacements or _has_answers(cfg)):
        what = "token_replacements" if cfg.token_replacements else "kind='answers'"
        raise ValueError(f"align_tokens=True is for models with different tokenizers, but {what} needs a common one.")
    if cfg.packing not in get_args(PackingRule):
        raise ValueError(f"packing={cfg.packing!r} is not one of {get_args(PackingRule)}.")
    if cfg.packing == "one_document" and cfg.disable_concat_sequences:
        raise ValueError(
            "disable_concat_sequences=True leaves short documents out; packing='one_document' pads them: use one."
        )


def _has_answers(cfg: Any) -> bool:
    return cfg.mix is not None and any(source.kind == "answers" for source in cfg.mix.sources)
