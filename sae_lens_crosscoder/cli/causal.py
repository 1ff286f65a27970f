"""The command `causal`."""

from collections.abc import Sequence
from pathlib import Path

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.causal_experiment import EFFECTS_FILENAME, PAGE_FILENAME, CausalConfig, run_causal


def run(args: Sequence[str]) -> None:
    """Patch latents from the chat into the base model, and measure the KL divergence from the chat model."""
    cfg = parse(CausalConfig, args, "causal")
    effects = run_causal(cfg)
    shown = effects[effects.window.isin(["all", "tokens 2-10"])]
    short = shown.pivot_table("kl_nats", ["setup", "variant"], ["crosscoder", "window"], sort=False)
    print(f"\nKL divergence from the chat model, in nats per token of the answer:\n\n{short.round(3).to_string()}\n")
    for name in (EFFECTS_FILENAME, PAGE_FILENAME):
        print(Path(cfg.output_path, name))
