"""Structure of the package that no tool checks: results are objects, names are the agreed ones, files are short."""

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "sae_lens_crosscoder"
FILES = sorted(PACKAGE.rglob("*.py"))
MAX_LINES = 300


def lines_with(pattern):
    places = []
    for path in FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        places += [
            f"{path.relative_to(PACKAGE)}:{n}: {line}" for n, line in enumerate(lines, 1) if pattern.search(line)
        ]
    return places


def test_no_result_rides_on_a_tables_attributes():
    assert lines_with(re.compile(r"\.attrs\b")) == []


def test_prompts_per_forward_pass_are_called_batch_size_but_in_the_hosts_configs():
    assert lines_with(re.compile(r"(?<!eval_)(?<!store_)batch_size_prompts")) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_file_is_long(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_files_are_written_atomically():
    """Under a temporary name, but for appended lines, parts of a checkpoint, and the tiny pair's maker."""
    writes = lines_with(re.compile(r"\.write_text\(|\.write_bytes\(|to_parquet\(|save_file\(|open\(\"w"))
    others = ("storage/", "models/tiny/", "training/checkpoints/", "training/runner.py")
    assert [line for line in writes if "partial" not in line and not line.startswith(others)] == []


def test_checks_are_called_validate():
    assert lines_with(re.compile(r"def _?(require|refuse|ensure|check)_(?!hooks_to_add)")) == []


def test_public_functions_load_and_save():
    """`read_` and `edited` are gone from public names; a private function may read a part of a file."""
    assert lines_with(re.compile(r"^(?:def|class) (read_|edited)")) == []
