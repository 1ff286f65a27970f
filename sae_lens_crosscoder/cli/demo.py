"""The command `demo`."""

from collections.abc import Sequence

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.demo import REPORT_FILENAME, SUMMARY_FILENAME, DemoConfig, run_demo


def run(args: Sequence[str]) -> None:
    """Train L1 and BatchTopK on the built-in pair, and report on both."""
    cfg = parse(DemoConfig, args, "demo")
    result = run_demo(cfg)
    print(f"\n{result.comparison.to_string()}\n")
    for name, diagnosis in result.diagnoses.items():
        print(f"{name}: {diagnosis.conclusion}")
    print()
    print("The latent that carries each concept, chosen on one half of matched prompts and measured on the other:\n")
    print(result.concepts.round(2).to_string())
    print()
    for name in (SUMMARY_FILENAME, REPORT_FILENAME, *result.diagnoses):
        print(result.output_path / name)
