"""The doctor sees what is wrong, says the way out, and never says a secret."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.workflows import doctor

ANSWER: Any = SimpleNamespace(headers={}, request=None)


@pytest.fixture(autouse=True)
def a_machine_that_lacks_nothing(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(doctor, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(doctor, "auth_check", lambda name: None)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**40))
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = SimpleNamespace(name="a card", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: card)


def failing(error):
    def check(name):
        raise error

    return check


def test_a_machine_that_lacks_nothing_is_sent_to_the_papers_setting(capsys):
    assert main(["doctor"]) == 0
    printed = capsys.readouterr()
    assert "[ ok ] cuda:0: a card, 80 GiB" in printed.out
    assert printed.out.splitlines()[-1].startswith("next: sae-lens-crosscoder plan --device cuda")
    assert "note" not in printed.out
    assert "hf_secret" not in printed.out + printed.err


def test_the_command_it_names_is_a_command(capsys):
    name, command, *flags = doctor.next_command(doctor.examine()).split()
    assert name == "sae-lens-crosscoder"
    with pytest.raises(SystemExit) as done:
        main([command, *flags, "--help"])
    assert done.value.code == 0


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (GatedRepoError("no", response=ANSWER), "accept its licence at https://huggingface.co/google/gemma-2-2b"),
        (RepositoryNotFoundError("no", response=ANSWER), "hf auth login"),
        (ConnectionError("no route"), "the Hub cannot be reached (ConnectionError)"),
    ],
)
def test_a_model_out_of_reach_is_a_note_with_its_fix(monkeypatch, capsys, error, found):
    monkeypatch.setattr(doctor, "auth_check", failing(error))
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    assert found in printed
    assert printed.splitlines()[-1] == "next: sae-lens-crosscoder demo"


def test_a_model_in_the_cache_needs_no_hub(monkeypatch):
    monkeypatch.setattr(doctor, "try_to_load_from_cache", lambda *_: "somewhere/config.json")
    monkeypatch.setattr(doctor, "auth_check", failing(AssertionError("the Hub was asked")))
    assert {finding.status for finding in doctor.examine()} == {"ok"}


def test_a_version_that_is_not_supported_fails_with_the_command_that_mends_it(monkeypatch, capsys):
    real = doctor.version
    monkeypatch.setattr(doctor, "version", lambda name: "5.0" if name == "sae-lens" else real(name))
    assert main(["doctor"]) == 2
    assert "sae-lens must change first: pip install 'sae-lens<7,>=6.54'" in capsys.readouterr().err


def test_a_full_disk_and_no_gpu_are_notes(monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    findings = doctor.examine()
    noted = [finding.name for finding in findings if finding.status == "note"]
    assert noted == ["GPU", "disk here", "disk of the Hub's cache"]
    assert doctor.next_command(findings) == "sae-lens-crosscoder demo"
