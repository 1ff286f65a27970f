"""The README is short, its commands are CI's, its links and numbers are right, and the examples run."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.house.pages import PAGES, ROOT, fences

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

README = (ROOT / "README.md").read_text()
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_the_readme_has_at_most_8_kb():
    assert len(README.encode()) <= 8000


def test_ci_calls_exactly_the_test_command_of_the_readme():
    (command,) = [fence.code.strip() for fence in fences(ROOT / "README.md", "bash") if "-m pytest" in fence.code]
    assert command in (ROOT / ".ci" / "run").read_text()


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "examples/gemma_2_2b/README.md"])
def test_links_into_the_repository_exist(name):
    page = ROOT / name
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_pages_show_no_internal_targets():
    assert [page for page in PAGES if re.search(r"\btargets? [\d.]|\bmissed\b", page.read_text())] == []


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
    # One thread: torch's idle threads spin, which costs minutes where another process has the second core.
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(path)]
    result = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.strip()


def test_measured_passages_are_what_the_results_files_say():
    """`python benchmarks/docs_tables.py` would change nothing, and every passage is shown somewhere."""
    sys.path.append(str(ROOT / "benchmarks"))
    import docs_tables

    texts = [page.read_text() for page in docs_tables.pages()]
    assert [docs_tables.rewritten(text) for text in texts] == texts
    passages = [match for text in texts for match in docs_tables.PASSAGE.findall(text)]
    assert {name for name, _ in passages} == set(docs_tables.PASSAGES)
    for name, text in passages:
        assert name == "headline" or re.search(
            r"Measured by `python benchmarks/[^`]+benchmarks/results/\w+\.json`", text
        )


def test_the_claims_are_means_of_the_measured_rows():
    document = json.loads((ROOT / "benchmarks" / "results" / "planted_pairs.json").read_text())
    rows = [row for row in document["rows"] if row["cell"] == "A"]
    means = [
        sum(row[column] for row in rows) / len(rows)
        for column in ("precision_chat_delta_norm", "recall_chat_delta_norm", "frac_weak_flagged")
    ]
    page = (ROOT / "docs" / "benchmarks.md").read_text()
    (line,) = [line for line in page.splitlines() if line.startswith("| L1 |")]
    assert [float(value) for value in re.findall(r"\d\.\d\d", line)[:3]] == [round(mean, 2) for mean in means]
