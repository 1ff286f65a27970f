"""The command `plan`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sae_lens_crosscoder.cli.train_flags import run_config_class, run_parser, train_parser, with_sweep
from sae_lens_crosscoder.planning import plan
from sae_lens_crosscoder.storage.field_types import validate_config
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig
from sae_lens_crosscoder.training.saved_run import load_runner_config


@dataclass
class PlanOptions:
    """Flags beside the run's config."""

    memory_gib: float | None = None
    """Memory of each GPU, or of the CPU if no GPU is used; by default that of this machine."""
    model_config: str | None = None
    """A folder with a transformers config.json, for models whose config cannot be downloaded."""
    sweep: str | None = None
    """Plan a run with one crosscoder per value of a field: `k=50,100,200`."""

    def __post_init__(self) -> None:
        validate_config(self)


def run(args: Sequence[str]) -> None:
    """Show what training needs; RUNNER_CFG is a saved config or its folder, which flags may change."""
    if args and not args[0].startswith("-"):
        cfg, options = _saved_config_with(args[0], args[1:])
    else:
        parsed = train_parser("plan", PlanOptions, positional="[RUNNER_CFG]").parse_args(args)
        cfg, options = parsed.cfg, parsed.options
        if options.sweep is not None:
            cfg = with_sweep(cfg, options.sweep)
    print(plan(cfg, options.memory_gib, options.model_config))


def _saved_config_with(path: str, args: Sequence[str]) -> tuple[CrosscoderRunnerConfig, PlanOptions]:
    """Read a config that training wrote, with fields changed by flags."""
    if any(flag.startswith("--sweep") for flag in args):
        raise ValueError("--sweep cannot change a saved config: give the run's flags instead of its file.")
    saved = load_runner_config(path)
    first: Any = saved.sae
    default = saved.replace(sae=first, saes=None)
    parsed = run_parser("plan", run_config_class(type(first)), PlanOptions, default=default).parse_args(args)
    cfg: CrosscoderRunnerConfig = parsed.cfg
    if saved.saes is not None:
        if cfg.sae != first:
            raise ValueError(f"{path} trains several crosscoders: change their fields in the file, not by flags.")
        cfg = cfg.replace(saes=saved.saes)
    cfg.checkpoint_path = saved.checkpoint_path  # to which the constructor appended more random ids
    return cfg, parsed.options
