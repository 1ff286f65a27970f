"""The command `paper-report`."""

from collections.abc import Sequence
from pathlib import Path

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.paper_report import PaperReportConfig, run_paper_report


def run(args: Sequence[str]) -> None:
    """Make every table and figure of the paper for any crosscoder, beside the paper's numbers."""
    cfg = parse(PaperReportConfig, args, "paper-report")
    for name, tables in run_paper_report(cfg).items():
        print(f"{name}: {tables.diagnosis.conclusion}")
    for path in sorted(Path(cfg.output_path).iterdir()):
        print(path)
