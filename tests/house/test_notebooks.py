"""The notebooks run from the first cell to the last, show what they mean to show, and hold no results of a run."""

import json
import re

import pandas as pd
import pytest

from tests.house.tutorials import NEED_FILES, NOTEBOOKS, TUTORIALS, as_markdown, cells, executed, run_cell

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def test_they_are_numbered():
    assert [int(path.stem[:2]) for path in NOTEBOOKS] == list(range(1, 8))
    assert {path.stem for path in NOTEBOOKS} > set(NEED_FILES)


@each_notebook
def test_it_is_a_notebook_without_results(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"
    assert notebook["metadata"]["language_info"]["name"] == "python"
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids)
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    for cell in code_cells(path):
        assert (cell["outputs"], cell["execution_count"]) == ([], None)


@each_notebook
def test_the_first_cell_installs_the_package_only_where_it_is_missing(path, monkeypatch):
    """The same in all notebooks, and plain Python: no cell has a line of shell or magic, or it would not parse."""
    first = "".join(code_cells(path)[0]["source"])
    assert first == "".join(code_cells(NOTEBOOKS[0])[0]["source"])
    commands = []
    monkeypatch.setattr("subprocess.run", lambda command, check: commands.append(command))
    run_cell(first, {}, path.name)
    assert commands == []
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    run_cell(first, {}, path.name)
    assert [command[1:4] for command in commands] == [["-m", "pip", "install"]]


@pytest.mark.parametrize("path", [p for p in NOTEBOOKS if p.stem not in NEED_FILES], ids=lambda path: path.stem)
def test_it_runs(path, tmp_path, monkeypatch):
    """In this process, which has the package imported already, and in its order."""
    monkeypatch.chdir(tmp_path)
    assert any(as_markdown(result, figure=lambda value: "figure") for result in executed(path))


@each_notebook
def test_its_tutorial_shows_its_cells_with_results(path):
    """`python -m tests.house.tutorials` was run since the notebook changed."""
    page = (TUTORIALS / f"{path.stem}.md").read_text()
    at = 0
    for kind, source in cells(path):
        block = source if kind == "markdown" else f"```python\n{source}\n```"
        assert block in page[at:], block
        at += page[at:].index(block) + len(block)
    results = re.sub(r"```python\n.*?```", "", page, flags=re.DOTALL)
    assert "```text" in results or "| --- |" in results
    assert len(page) < 40_000


def test_a_cell_shows_what_it_prints_and_its_last_expression():
    namespace = {"table": pd.DataFrame({"verdict": ["a|b"]}, index=pd.RangeIndex(1, name="latent"))}
    result = run_cell("print('hello')\ntable", namespace, "cell")
    table = "| latent | verdict |\n| --- | --- |\n| 0 | a\\|b |"
    assert as_markdown(result, figure=None) == ["```text\nhello\n```", table]
    assert as_markdown(run_cell("x = 1\nx + 1", namespace, "cell"), figure=None) == ["```text\n2\n```"]
    assert as_markdown(run_cell("y = x", namespace, "cell"), figure=None) == []
    with pytest.raises(SyntaxError):
        run_cell("%pip install torch", namespace, "cell")
