"""Runs the notebooks and writes them as the site's tutorials, results included.

python -m tests.house.tutorials [--folder FOLDER] [NOTEBOOK ...]

Notebooks run in an empty folder, or in the given one, where those of `NEED_FILES` find their models.
"""

import argparse
import ast
import contextlib
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from tests.house.pages import ROOT

NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
NEED_FILES = ["07_a_real_pair"]
"""Notebooks that read files from the folder that they run in, and take longer than a test may."""
TUTORIALS = ROOT / "docs" / "tutorials"


@dataclass(frozen=True)
class Result:
    """What a cell printed, and the value of its last line."""

    printed: str
    value: object


def cells(path):
    """The cells of a notebook as pairs of type and source."""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]


def run_cell(source, namespace, name):
    """Run a cell as a notebook does, and return what it shows."""
    tree = ast.parse(source, name)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(tree, name, "exec"), namespace)
        value = None if last is None else eval(compile(ast.Expression(last.value), name, "eval"), namespace)
    return Result(printed.getvalue(), value)


def markdown_table(table):
    """A DataFrame or a Series as a Markdown table."""
    frame = (table.to_frame() if isinstance(table, pd.Series) else table).reset_index()
    rows = [[str(name) for name in frame.columns], *([str(value) for value in row] for row in frame.to_numpy())]
    lines = ["| " + " | ".join(cell.replace("|", "\\|").replace("<", "&lt;") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def as_markdown(result, figure):
    """A cell's result as Markdown blocks: text, a table, or the picture that `figure` writes."""
    blocks = [f"```text\n{result.printed.strip()}\n```"] if result.printed.strip() else []
    if isinstance(result.value, pd.DataFrame | pd.Series):
        blocks.append(markdown_table(result.value))
    elif type(result.value).__module__.startswith("plotly"):
        blocks.append(figure(result.value))
    elif result.value is not None:
        blocks.append(f"```text\n{result.value!r}\n```")
    return blocks


def page(path, results):
    """The tutorial of a notebook: its text, its code, and the results of its code cells."""
    remaining = iter(results)
    blocks = []
    for kind, source in cells(path):
        blocks += [source] if kind == "markdown" else [f"```python\n{source}\n```", *next(remaining)]
    return "\n\n".join(blocks) + "\n"


def executed(path, namespace=None):
    """The results of a notebook's code cells, run in order in the current folder."""
    namespace = {"__name__": "__main__"} if namespace is None else namespace
    for number, (kind, source) in enumerate(cells(path)):
        if kind == "code":
            yield run_cell(source, namespace, f"{path.name}, cell {number}")


def write_tutorial(path, folder=None):
    """Run one notebook and write its page, with figures as pictures beside it."""
    n_figures = 0

    def figure(value):
        nonlocal n_figures
        n_figures += 1
        name = f"{path.stem}_{n_figures}.png"
        value.write_image(TUTORIALS / name, width=900, height=450)
        return f"![Figure {n_figures}]({name})"

    before = Path.cwd()
    with tempfile.TemporaryDirectory() as empty:
        os.chdir(folder or empty)
        try:
            results = [as_markdown(result, figure) for result in executed(path)]
        finally:
            os.chdir(before)
    (TUTORIALS / f"{path.stem}.md").write_text(page(path, results))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", default=[p.stem for p in NOTEBOOKS if p.stem not in NEED_FILES])
    parser.add_argument("--folder", help="the folder to run in")
    args = parser.parse_args()
    for path in NOTEBOOKS:
        if path.stem in args.notebooks:
            write_tutorial(path, args.folder)
            print(path.stem, flush=True)


if __name__ == "__main__":
    main()
