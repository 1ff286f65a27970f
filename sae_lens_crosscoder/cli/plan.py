"""`plan`: what training needs, before anything is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass, make_dataclass
from typing import Any

from sae_lens_crosscoder.cli.flags import parser, take_sweep, train_config_class, with_sweep
from sae_lens_crosscoder.planning import plan
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.saved_run import read_runner_config


@dataclass
class PlanConfig:
    """What a plan is made with, beside the run's own fields."""

    memory_gib: float | None = None
    """Memory of each GPU, or of the CPU when no GPU is used; by default what this machine has."""
    model_config: str | None = None
    """A folder with a transformers config.json of models like these, for when their own cannot be reached."""


def run(args: Sequence[str]) -> None:
    """Say what training needs (memory, disk, time) and what would make it fit; with train's flags, or a config."""
    sweep, args = take_sweep(args)
    if args and not args[0].startswith("-"):
        if sweep is not None:
            raise ValueError("--sweep goes with flags; a saved config already says which crosscoders it trains.")
        cfg, options = _saved_config_with(args[0], args[1:])
    else:
        parsed = parser("plan", cfg=train_config_class(), options=PlanConfig).parse_args(args)
        cfg, options = parsed.cfg, parsed.options
        if sweep is not None:
            cfg = with_sweep(cfg, *sweep)
    print(plan(cfg, options.memory_gib, options.model_config))


def _saved_config_with(path: str, args: Sequence[str]) -> tuple[CrosscoderRunnerConfig, PlanConfig]:
    """A config that training wrote, with fields changed by flags, and what to plan with."""
    saved = read_runner_config(path)
    first: Any = saved.sae
    config_class: Any = make_dataclass("SavedConfig", [("sae", type(first), None)], bases=(CrosscoderRunnerConfig,))
    flags = parser("plan", options=PlanConfig)
    flags.add_arguments(config_class, dest="cfg", default=saved.replace(sae=first, saes=None))
    parsed = flags.parse_args(args)
    cfg: CrosscoderRunnerConfig = parsed.cfg
    if saved.saes is not None:
        if cfg.sae != first:
            raise ValueError(f"{path} trains several crosscoders: their fields can only be changed in the file.")
        cfg = cfg.replace(saes=saved.saes)
    cfg.checkpoint_path = saved.checkpoint_path  # to which the constructor appended more random ids
    return cfg, parsed.options
