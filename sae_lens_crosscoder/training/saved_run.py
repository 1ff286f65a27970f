"""Loads the run config saved beside a crosscoder, and from it the pair and the held-out tokens."""

from pathlib import Path

from sae_lens.constants import RUNNER_CFG_FILENAME

from sae_lens_crosscoder.crosscoders.collectives import SINGLE_PROCESS
from sae_lens_crosscoder.storage.checksums import FolderChecksums
from sae_lens_crosscoder.storage.field_types import naming_file
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.training.data.run_data import RunData
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig


def load_runner_config(path: str) -> CrosscoderRunnerConfig:
    """Load the config that training wrote, from the file or from the crosscoder's folder."""
    file = Path(path, RUNNER_CFG_FILENAME) if Path(path).is_dir() else Path(path)
    if not file.exists():
        raise ValueError(f"{file} does not exist: give a {RUNNER_CFG_FILENAME} that training wrote, or its folder.")
    FolderChecksums(file.parent).warn_if_edited(file.name)
    fields = load_json(file)
    with naming_file(file):
        return CrosscoderRunnerConfig.from_dict(fields)


def validate_has_runner_config(crosscoder: str, instead: str) -> None:
    """Raise a ValueError, with the remedy `instead`, for a folder without its run's config."""
    if not Path(crosscoder, RUNNER_CFG_FILENAME).exists():
        raise ValueError(f"{crosscoder} has no {RUNNER_CFG_FILENAME}, so its training data are unknown: {instead}")


def held_out_run(crosscoder: str, n_held_out_rows: int | None, instead: str) -> RunData:
    """The pair and the held-out tokens of the run that trained a crosscoder, in one process, however many it had.

    Args:
        n_held_out_rows: how many of these will be used, None for all.
        instead: what to do for a crosscoder that was not trained here.

    Raises:
        ValueError: for a folder without its run's config, or more rows than were held out.
    """
    validate_has_runner_config(crosscoder, instead)
    cfg = load_runner_config(crosscoder)
    if n_held_out_rows is not None and n_held_out_rows > cfg.n_held_out_rows:
        raise ValueError(
            f"Training held out {cfg.n_held_out_rows} rows: n_held_out_rows={n_held_out_rows} would include "
            "training data."
        )
    cfg.wait_for_cache = 0  # a cache that was trained on is whole
    return RunData(cfg, None, None, SINGLE_PROCESS)
