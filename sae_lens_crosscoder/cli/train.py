"""The command `train`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.cli.train_flags import train_parser, with_sweep
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig


@dataclass
class TrainOptions:
    """Flags beside the run's config."""

    sweep: str | None = None
    """Train one crosscoder per value of a field, all on the same activations: `k=50,100,200`."""


def run(args: Sequence[str]) -> None:
    """Train crosscoders on a pair of models, and diagnose them on held-out tokens."""
    parsed = train_parser("train", TrainOptions).parse_args(args)
    cfg: CrosscoderRunnerConfig = parsed.cfg
    if parsed.options.sweep is not None:
        cfg = with_sweep(cfg, parsed.options.sweep)
    runner = CrosscoderTrainingRunner(cfg)
    crosscoders: Any = runner.run()
    if not runner.collectives.is_lead:
        return
    print(f"\n{runner.summary.to_string()}\n")
    if cfg.output_path is None:
        return
    for name, crosscoder in crosscoders.items() if cfg.saes is not None else [("", crosscoders)]:
        folder = Path(cfg.output_path, name)
        diagnosis = diagnose(crosscoder, runner.held_out_data())
        diagnosis.save(folder)
        print(f"{folder}: {diagnosis.conclusion}")
