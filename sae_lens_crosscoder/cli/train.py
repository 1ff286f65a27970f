"""`train`: crosscoders on a pair of models, diagnosed when they are trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.analysis.diagnosis.diagnose import diagnose
from sae_lens_crosscoder.analysis.tables.latents_file import write_latents
from sae_lens_crosscoder.cli.flags import parse, take_sweep, train_config_class, with_sweep
from sae_lens_crosscoder.training.runner import CrosscoderTrainingRunner
from sae_lens_crosscoder.training.runner_config import CrosscoderRunnerConfig


def run(args: Sequence[str]) -> None:
    """Train crosscoders on a pair of models, and diagnose them on held-out tokens."""
    sweep, args = take_sweep(args)
    cfg: CrosscoderRunnerConfig = parse(train_config_class(), args, "train")
    if sweep is not None:
        cfg = with_sweep(cfg, *sweep)
    runner = CrosscoderTrainingRunner(cfg)
    crosscoders: Any = runner.run()
    if not runner.collectives.is_lead:
        return
    print(f"\n{runner.summary.to_string()}\n")
    if cfg.output_path is None:
        return
    for name, crosscoder in crosscoders.items() if cfg.saes is not None else [("", crosscoders)]:
        folder = Path(cfg.output_path, name)
        table = diagnose(crosscoder, **runner.held_out_data())
        write_latents(table, folder)
        print(f"{folder}: {table.attrs['conclusion']}")
