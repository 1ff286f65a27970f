"""The command `look`: what it prints, what it writes, how it refuses."""

from pathlib import Path

import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_look_prints_the_recommendation_and_writes_the_tables_and_the_page(capsys):
    assert main(["look", "tiny-base", "tiny-chat", "--n-prompts", "16"]) == 0
    printed = capsys.readouterr().out
    assert "Recommended hook: blocks.3.hook_resid_post (confidence: high)." in printed
    assert printed.splitlines()[-1] == "look/first_look.html"
    assert "share_last" in printed
    assert Path("look/first_look.html").exists()
    look = slc.causal.FirstLook.load("look")
    assert look.manifest["models"] == ["tiny-base", "tiny-chat"]
    assert look.manifest["n_prompts"] == 16


def test_prompts_come_from_a_file_and_are_asked_for(capsys):
    Path("requests.txt").write_text("now could you sketch the dog ?\nso would you envy the goat ?\n")
    arguments = ["look", "tiny-base", "tiny-chat", "--prompts", "requests.txt", "--output-path", "out", "--every", "2"]
    assert main(arguments) == 0
    look = slc.causal.FirstLook.load("out")
    assert list(look.hooks.index) == ["blocks.1.hook_resid_post", "blocks.3.hook_resid_post"]
    assert look.manifest["n_prompts"] == 2
    for arguments, message in (
        (["gpt2", "my-chat"], "`prompts` is missing"),
        (["tiny-base", "tiny-chat", "--prompts", "nowhere.txt"], "nowhere.txt"),
        (["tiny-base", "tiny-chat", "--n-prompts", "0"], "n_prompts=0 must be at least 1"),
        (["tiny-base", "tiny-base"], "identical on all"),
    ):
        assert main(["look", *arguments]) == 2
        assert message in capsys.readouterr().err
