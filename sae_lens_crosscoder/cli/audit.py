"""The command `audit`."""

from collections.abc import Sequence
from pathlib import Path

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.auditing.audit import PAGE_FILENAME, audit
from sae_lens_crosscoder.workflows.auditing.config import AuditConfig


def run(args: Sequence[str]) -> None:
    """Find what a fine-tune changed, with the evidence and the limits."""
    cfg = parse(AuditConfig, args, "audit")
    print(f"\n{audit(cfg)}\n")
    print(Path(cfg.output_path, PAGE_FILENAME))
