"""How benchmarks write down what they measured: rows, with the commit, the machine, versions and the command."""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("sae-lens-crosscoder", "sae-lens", "transformer-lens", "torch", "numpy")
ROOT = Path(__file__).parent.parent


def _git(*args: str) -> str:
    return subprocess.run(["git", *args], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


# As the measurement began: the tree may change while it runs.
COMMIT = _git("rev-parse", "HEAD") + ("+changes" if _git("status", "--porcelain", "--untracked-files=no") else "")


def write_results(path: str | Path, rows: list[dict[str, Any]], **extra: Any) -> None:
    """Write JSON that says how to make it again; nan becomes null."""
    document = {
        "command": "python " + " ".join([Path(sys.argv[0]).resolve().relative_to(ROOT).as_posix(), *sys.argv[1:]]),
        "commit": COMMIT,
        "machine": {"processor": platform.machine(), "system": platform.system(), "python": platform.python_version()},
        "versions": {name: version(name) for name in PACKAGES},
        **extra,
        "rows": [{name: _strict(value) for name, value in row.items()} for row in rows],
    }
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps(document, indent=1) + "\n")


def _strict(value: Any) -> Any:
    return None if isinstance(value, float) and value != value else value
