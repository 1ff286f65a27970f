"""Help, the version and a mistyped command answer without importing the hosts, in almost no time."""

import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = str(Path(sys.executable).parent / "sae-lens-crosscoder")
# Importing the hosts takes less than `--help` took when it imported them and this package.
MOST_CPU_TIME = 0.05
HEAVY = {"torch", "sae_lens", "transformer_lens", "pandas", "numpy", "transformers"}
MEASURE = """
import subprocess, sys, resource
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
usage = resource.getrusage(resource.RUSAGE_CHILDREN)
print(usage.ru_utime + usage.ru_stime)
"""


def cpu_seconds(*command):
    measured = subprocess.run([sys.executable, "-c", MEASURE, *command], capture_output=True, text=True, check=True)
    return float(measured.stdout)


def imported(*command):
    """Top-level modules that a Python program imports."""
    result = subprocess.run([sys.executable, "-X", "importtime", *command], capture_output=True, text=True, check=False)
    names = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    return {name.partition(".")[0] for name in names}


@pytest.fixture(scope="module")
def cpu_seconds_of_the_hosts():
    return cpu_seconds(sys.executable, "-c", "import torch, sae_lens")


@pytest.mark.parametrize("start", [[COMMAND], ["-m", "sae_lens_crosscoder"]], ids=["script", "module"])
@pytest.mark.parametrize("args", [[], ["--help"], ["--version"], ["dmeo"]], ids=["nothing", "help", "version", "typo"])
def test_a_command_that_does_no_work_imports_no_host(start, args, cpu_seconds_of_the_hosts):
    assert not imported(*start, *args) & HEAVY
    least = min(cpu_seconds(sys.executable, *start, *args) for _ in range(3))
    assert least < MOST_CPU_TIME * cpu_seconds_of_the_hosts


def test_the_measurement_sees_a_heavy_import():
    assert imported("-c", "import sae_lens_crosscoder.stacking") >= {"torch", "sae_lens", "transformer_lens"}


def test_a_real_command_registers_the_architectures_and_lends_the_public_names():
    program = (
        "import sys; sys.argv[0] = 'sae-lens-crosscoder'; import sae_lens_crosscoder as slc; "
        "assert 'torch' not in sys.modules; "
        "from sae_lens_crosscoder.cli import main; code = main(['plan', 'nowhere']); "
        "from sae_lens.registry import SAE_CLASS_REGISTRY as known; "
        "print(code, 'jumprelu_crosscoder' in known, slc.load.__name__)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["2", "True", "load"]
