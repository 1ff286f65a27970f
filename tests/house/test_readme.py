"""What the README shows runs as shown: python fences in one session, commands parsed, numbers from the results."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
FENCES = re.findall(r"^```(\w+)([^\n]*)\n(.*?)^```", README, flags=re.M | re.S)
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def fences(language):
    return [(tags, code) for name, tags, code in FENCES if name == language]


def test_python_fences_run_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "readme"}
    assert fences("python")
    for tags, code in fences("python"):
        compiled = compile(code, "README.md", "exec")
        if "no-run" not in tags:
            exec(compiled, namespace)


def test_shell_fences_are_valid_commands():
    assert fences("bash")
    for _, code in fences("bash"):
        result = subprocess.run(["bash", "-n"], input=code, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr


def test_ci_calls_exactly_the_test_command_of_the_readme():
    (command,) = [code.strip() for _, code in fences("bash") if code.strip().endswith("-m pytest")]
    assert command in (ROOT / ".ci" / "run").read_text()


def test_links_into_the_repository_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
    # One thread: torch's idle threads spin, which costs minutes where another process has the second core.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path)]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip()


def test_the_claims_table_is_what_the_benchmark_measured():
    """Every number of the README's table of claims stands in benchmarks/results, averaged over its seeds."""
    document = json.loads((ROOT / "benchmarks" / "results" / "planted_pairs.json").read_text())
    assert document["command"] in README
    table = [line for line in README.splitlines() if line.startswith("| ") and "concepts" not in line]
    for name, cell in {"L1": "A", "BatchTopK": "batchtopk"}.items():
        rows = [row for row in document["rows"] if row["cell"] == cell]
        (line,) = [line for line in table if line.startswith(f"| {name} ")]
        columns = ("precision", "recall", "frac_weak_flagged", "frac_decoupled_flagged", "precision_after_nu")
        means = [sum(row[column] for row in rows) / len(rows) for column in columns]
        shown = [float(cell) for cell in re.findall(r"\d\.\d\d", line)]
        assert shown == [round(mean, 2) for mean in means]
