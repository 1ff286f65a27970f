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
    (command,) = [code.strip() for _, code in fences("bash") if "-m pytest" in code and "venv" in code]
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


def test_measured_passages_are_what_the_results_files_say():
    """`python benchmarks/readme.py` would change nothing."""
    sys.path.append(str(ROOT / "benchmarks"))
    import readme

    assert readme.rewritten(README) == README
    passages = re.findall(r"<!-- measured: ([\w ]+) -->\n(.*?)\n<!-- end -->", README, flags=re.DOTALL)
    assert {name for name, _ in passages} == set(readme.PASSAGES)
    for _, text in passages:
        assert re.search(r"`python benchmarks/[^`]+--output benchmarks/results/\w+\.json`", text)


def test_the_claims_are_means_of_the_measured_rows():
    document = json.loads((ROOT / "benchmarks" / "results" / "planted_pairs.json").read_text())
    rows = [row for row in document["rows"] if row["cell"] == "A"]
    means = [sum(row[column] for row in rows) / len(rows) for column in ("precision", "recall", "frac_weak_flagged")]
    (line,) = [line for line in README.splitlines() if line.startswith("| L1 |")]
    assert [float(value) for value in re.findall(r"\d\.\d\d", line)[:3]] == [round(mean, 2) for mean in means]
