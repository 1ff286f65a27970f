"""What the README and the documentation show runs as shown, scaled down to the built-in pair."""

import re
import shlex
import shutil
import subprocess

import pytest

from sae_lens_crosscoder.cli import COMMANDS, main
from tests.house.pages import ROOT, WRITTEN_PAGES, fences, make_workspace, namespace, scaled_down

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

each_page = pytest.mark.parametrize("page", WRITTEN_PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
TRAINING_COMMANDS = ("train", "plan", "cache")
WITH_PYTHON = [page for page in WRITTEN_PAGES if fences(page, "python")]


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    make_workspace(folder)
    return folder


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_python_fences_of_a_page_run_in_order(page, workspace, tmp_path, monkeypatch):
    shutil.copytree(workspace, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    variables = namespace()
    for fence in fences(page, "python"):
        compiled = compile(scaled_down(fence.code), page.name, "exec")
        if fence.no_run is None:
            exec(compiled, variables)


def test_most_fences_run():
    """A page that runs nothing proves nothing; only downloads, paid endpoints and extras are excused."""
    all_fences = [fence for page in WITH_PYTHON for fence in fences(page, "python")]
    excused = [fence.no_run for fence in all_fences if fence.no_run is not None]
    assert all(re.match(r"(downloads|needs|asks a paid endpoint)", reason) for reason in excused)
    assert len(excused) < len(all_fences) / 5


def commands(code):
    """The calls of our command line in a shell fence, each as its arguments."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        for start in ("sae-lens-crosscoder", ".venv/bin/sae-lens-crosscoder", "sae_lens_crosscoder"):
            if start in words:
                yield words[words.index(start) + 1 :]


def known_flags(command, words, capsys):
    """The flags that a command's own help lists, for the architecture that is asked for."""
    at = words.index("--architecture") if "--architecture" in words else len(words)
    with pytest.raises(SystemExit):
        main([command, *words[at : at + 2], "--help-all" if command in TRAINING_COMMANDS else "--help"])
    return {flag.replace("-", "_") for flag in re.findall(r"--[\w-]+", capsys.readouterr().out)}


@each_page
def test_shell_fences_are_valid_commands(page, capsys):
    for fence in fences(page, "bash"):
        result = subprocess.run(["bash", "-n"], input=fence.code, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        for command, *words in commands(fence.code):
            assert command in COMMANDS
            flags = {word.partition("=")[0].replace("-", "_") for word in words if word.startswith("--")}
            assert flags <= known_flags(command, words, capsys), command


def test_a_command_over_several_lines_is_one():
    code = "torchrun -m sae_lens_crosscoder train \\\n    --k 8  # comment\nls\nsae-lens-crosscoder demo\n"
    assert list(commands(code)) == [["train", "--k", "8"], ["demo"]]
