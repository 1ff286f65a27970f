"""Writes the results of benchmarks: rows, with the commit, the machine, versions and the command."""

import json
import math
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from sae_lens_crosscoder.storage.versions import RECORDED, package_versions

PACKAGES = (*RECORDED, "numpy")
ROOT = Path(__file__).parent.parent


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


# Read when the measurement starts: the tree may change while it runs.
_CHANGES = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
COMMIT = _git("rev-parse", "HEAD") + ("+changes" if _CHANGES else "")


def write_results(path: str | Path, rows: list[dict[str, Any]], **extra: Any) -> None:
    """Write rows as JSON, with what is needed to measure them again; nan becomes null."""
    document = {
        "command": "python " + " ".join([Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]),
        "commit": COMMIT,
        "machine": {"processor": platform.machine(), "system": platform.system(), "python": platform.python_version()},
        "versions": package_versions(PACKAGES),
        **extra,
        "rows": rows,
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(_strict(document), indent=1, allow_nan=False) + "\n")


def _strict(value: Any) -> Any:
    """Replace nan and infinity, which JSON does not have, by None."""
    if isinstance(value, dict):
        return {name: _strict(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_strict(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
