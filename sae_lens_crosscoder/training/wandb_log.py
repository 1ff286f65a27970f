"""Weights & Biases logging. The only module that imports wandb."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import wandb
from sae_lens import LoggingConfig

logger = logging.getLogger(__name__)


def start(cfg: LoggingConfig, config: dict[str, Any]) -> None:
    """Start a run; without a key it is offline, because a prompt would block an unattended job."""
    mode: Any = os.environ.get("WANDB_MODE")
    if mode is None and not wandb.api.api_key:
        logger.warning("No W&B key found, so the run is recorded offline; upload it later with `wandb sync`.")
        mode = "offline"
    wandb.init(
        project=cfg.wandb_project,
        entity=cfg.wandb_entity,
        config=config,
        name=cfg.run_name,
        id=cfg.wandb_id,
        mode=mode,
    )


def log(row: Mapping[str, Any], step: int, name: str) -> None:
    """Log numbers of one crosscoder; those of a named one are grouped under its name."""
    wandb.log({f"{name}/{key}" if name else key: value for key, value in row.items()}, step=step)


def finish() -> None:
    wandb.finish()
