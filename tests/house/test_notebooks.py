"""The notebooks run from the first cell to the last, show what they mean to show, and hold no results of a run."""

import ast
import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def shown(value):
    """What a notebook shows of a cell's value: its HTML, or its text."""
    html = getattr(value, "_repr_html_", None)
    return (html() if html is not None else None) or repr(value)


def run_cell(source, namespace, name):
    """Run a cell, and return what its last line shows if that is an expression, as a notebook does."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), namespace)
    if last is None:
        return None
    value = eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    return None if value is None else shown(value)


def test_there_are_six():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06"]


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


@each_notebook
def test_it_runs(path, tmp_path, monkeypatch):
    """In this process, which has the package imported already, and in its order."""
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    n_shown = 0
    for i, cell in enumerate(code_cells(path)):
        n_shown += bool(run_cell("".join(cell["source"]), namespace, f"{path.name}, code cell {i}"))
    assert n_shown > 0


def test_a_cell_shows_its_last_expression():
    class Table:
        def _repr_html_(self):
            return "<table>"

    namespace = {"Table": Table}
    assert run_cell("x = 1\nTable()", namespace, "cell") == "<table>"
    assert run_cell("x + 1", namespace, "cell") == "2"
    assert run_cell("y = x", namespace, "cell") is None
    with pytest.raises(SyntaxError):
        run_cell("%pip install torch", namespace, "cell")
