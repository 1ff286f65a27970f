"""The command `doctor`."""

from collections.abc import Sequence
from dataclasses import dataclass

from sae_lens_crosscoder.cli.flags import parse
from sae_lens_crosscoder.workflows.doctor import examine, next_command

MARKS = {"ok": " ok ", "note": "note", "missing": "FAIL"}


@dataclass
class DoctorConfig:
    """No flags."""


def run(args: Sequence[str]) -> None:
    """Check versions, devices, access to Gemma and disk space, and name the next command."""
    parse(DoctorConfig, args, "doctor")
    findings = examine()
    for finding in findings:
        fix = f" -> {finding.fix}" if finding.fix else ""
        print(f"[{MARKS[finding.status]}] {finding.name}: {finding.result}{fix}")
    missing = [finding.name for finding in findings if finding.status == "missing"]
    if missing:
        raise ValueError(f"{', '.join(missing)} must change first: {next_command(findings)}")
    print(f"\nnext: {next_command(findings)}")
