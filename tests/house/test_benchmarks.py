"""The benchmarks import what this package has: a name that moved is noticed here, not when a figure is due."""

import ast
import importlib.util
from pathlib import Path

import pytest

BENCHMARKS = sorted((Path(__file__).parents[2] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_every_imported_name_of_the_package_exists(path):
    imports = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ImportFrom)]
    for node in imports:
        if (node.module or "").startswith("sae_lens_crosscoder"):
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            absent = [name for name in missing if importlib.util.find_spec(f"{node.module}.{name}") is None]
            assert not absent, f"{path.name} imports {absent} from {node.module}"
