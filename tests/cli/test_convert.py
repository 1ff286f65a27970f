"""`sae-lens-crosscoder convert`, there and back."""

import pytest
import torch
from safetensors.torch import load_file

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.cli import main
from tests.loading.foreign_files import LAYOUTS, batchtopk, tokens


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:.*was loaded as .*, with assumed settings:UserWarning")
def test_there_and_back(tmp_path, capsys):
    LAYOUTS["B"].write(tmp_path / "theirs")
    flags = "--model_names a b --hook-name here --theta 4 --format dictionary_learning --activation_scales 0.5 2"
    assert main(["convert", "theirs", "ours", *flags.split()]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "ours"
    ours = slc.load("ours")
    metadata = ours.cfg.metadata
    assert (metadata.model_name, metadata.chat_model_name, metadata.hook_name) == ("a", "b", "here")
    assert ours.cfg.activation_scales == (0.5, 2.0)
    assert main(["convert", "ours", "back", "--to", "dictionary_learning"]) == 0
    assert load_file("back/model.safetensors")["threshold"] == pytest.approx(4.0)
    x, back = tokens().flatten(1), slc.load("back")
    torch.testing.assert_close(back.encode(x), ours.encode(x))
    for name in ("model_name", "chat_model_name", "hook_name", "dropped_tokens"):
        assert getattr(back.cfg.metadata, name) == getattr(metadata, name)
    assert back.cfg.activation_scales == (0.5, 2.0)


def test_mistakes_are_one_line(tmp_path, capsys):
    (LAYOUTS["B"].write(tmp_path / "theirs") / "model.safetensors").unlink()
    assert main(["convert", "theirs", "ours"]) == 2
    assert "theirs is not a crosscoder folder" in capsys.readouterr().err
    assert main(["convert", "theirs", "./theirs"]) == 2
    assert "theirs is the source as well" in capsys.readouterr().err


def test_a_threshold_that_was_never_estimated_needs_a_word(tmp_path, capsys):
    layout = LAYOUTS["B"]
    type(layout)(batchtopk(-1.0)).write(tmp_path / "theirs")
    assert main(["convert", "theirs", "ours"]) == 2
    assert "Give theta=..." in capsys.readouterr().err
    with pytest.warns(UserWarning, match="every positive latent is active"):
        assert main(["convert", "theirs", "ours", "--allow_relu", "True"]) == 0
    assert slc.load("ours").cfg.architecture() == "crosscoder"
