"""Lint, format, types and import contracts; each check fails the suite, none repairs anything."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECKS = {
    "lint": ["ruff", "check", "."],
    "format": ["ruff", "format", "--check", "."],
    "types": ["pyright", "--pythonpath", sys.executable],
    "import contracts": ["lint-imports"],
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_code_passes(name):
    tool, *arguments = CHECKS[name]
    command = [str(Path(sys.executable).parent / tool), *arguments]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_importing_is_quiet_registers_and_stays_off_network_and_plotting_of_our_own():
    code = """
import sys, socket, warnings
warnings.simplefilter("error", UserWarning)
def refuse(*a, **k): raise AssertionError("import opened a socket")
import sae_lens, transformer_lens  # what the hosts do on import is theirs
before = set(sys.modules)
socket.socket.connect = refuse
import sae_lens_crosscoder
import importlib
importlib.reload(sae_lens_crosscoder)  # twice is harmless
from sae_lens.registry import SAE_CLASS_REGISTRY, SAE_TRAINING_CLASS_REGISTRY
assert {"crosscoder", "jumprelu_crosscoder"} <= set(SAE_CLASS_REGISTRY)
assert {"crosscoder", "batchtopk_crosscoder"} <= set(SAE_TRAINING_CLASS_REGISTRY)
assert not [name for name in set(sys.modules) - before if name.startswith(("plotly", "matplotlib"))]
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
