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
        way_out = f" -> {finding.way_out}" if finding.way_out else ""
        print(f"[{MARKS[finding.status]}] {finding.what}: {finding.found}{way_out}")
    missing = [finding.what for finding in findings if finding.status == "missing"]
    if missing:
        raise ValueError(f"{', '.join(missing)} must change first: {next_command(findings)}")
    print(f"\nnext: {next_command(findings)}")
