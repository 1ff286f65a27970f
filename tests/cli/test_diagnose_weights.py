"""`sae-lens-crosscoder diagnose` of crosscoders of other people: weights alone, the Hub, named data, mistakes."""

import json

import pandas as pd
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from sae_lens import StandardSAE, StandardSAEConfig
from safetensors.torch import save_file

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis import WeightDiagnosis
from sae_lens_crosscoder.cli import main
from sae_lens_crosscoder.loading import hub
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from tests.loading.foreign_files import LAYOUTS, Layout, main_tensors

DATA = f"--dataset_path tiny-mix --context_size 64 --n_held_out_rows 8 --hook_name {TINY_HOOK}".split()


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_models(monkeypatch):
    monkeypatch.setattr(slc.HookedModelPair, "from_pretrained", lambda *args, **kwargs: pytest.fail("loaded a model"))


@pytest.mark.usefixtures("no_models")
@pytest.mark.parametrize("name", ["A-local", "gemma"])
def test_a_folder_becomes_tables_and_a_page_that_say_what_was_read_assumed_and_missing(tmp_path, capsys, name):
    layout = LAYOUTS[name]
    layout.write(tmp_path / "theirs")
    flags = [part for key, value in layout.options.items() for part in (f"--{key}", str(value))]
    assert main(["diagnose", "theirs", *flags]) == 0
    out = capsys.readouterr().out
    found = WeightDiagnosis.load("theirs")
    page = (tmp_path / "theirs" / "weights.html").read_text(encoding="utf-8")
    assert out.splitlines()[-1] == "theirs/weights.html"
    assert f"Read as {layout.format}." in out
    assert f"<b>{layout.format}</b>" in page
    for told in found.manifest["assumptions"]:
        assert f"Assumed: {told}" in out
    for quantity in found.needs.index:
        assert quantity in out
        assert quantity in page
    assert ("Where latents write" in page) == bool(found.manifest["compared"])


@pytest.mark.usefixtures("no_models")
def test_names_that_the_command_gives_are_no_longer_assumed_or_missing(tmp_path, capsys):
    LAYOUTS["B"].write(tmp_path / "theirs")
    flags = "--model_name a/base --chat_model_name a/chat --hook_name blocks.2.hook_resid_post --output_path out"
    assert main(["diagnose", "theirs", *flags.split()]) == 0
    out = capsys.readouterr().out
    assert "from the models a/base and a/chat, at blocks.2.hook_resid_post, and held-out data" in out
    assert "Assumed: model_names" not in out
    assert "Assumed: hook_name" not in out
    assert "Assumed: on the model axis" in out
    assert WeightDiagnosis.load("out").manifest["models"] == ["a/base", "a/chat"]


@pytest.mark.usefixtures("no_models")
def test_a_hub_id_is_read_as_the_folder_is_and_written_here(tmp_path, monkeypatch):
    LAYOUTS["B"].write(tmp_path / "cache" / "layer")
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: str(tmp_path / "cache"))
    assert main(["diagnose", "owner/name/layer"]) == 0
    assert main(["diagnose", "cache/layer"]) == 0
    pd.testing.assert_frame_equal(WeightDiagnosis.load("layer").latents, WeightDiagnosis.load("cache/layer").latents)


@pytest.mark.filterwarnings("ignore:.*was loaded as .*, with assumed settings:UserWarning")
def test_with_data_the_rest_is_told_as_from_code(tmp_path, capsys):
    Layout(main_tensors(width=96, d_sae=24)).write(tmp_path / "theirs")
    assert main(["diagnose", "theirs", *DATA]) == 2
    assert "does not say which models it reads: model_name and chat_model_name is missing" in capsys.readouterr().err
    assert not (tmp_path / "theirs" / "weights.html").exists()  # refused before any work
    assert main(["diagnose", "theirs", *DATA, "--model_name", "tiny-base", "--chat_model_name", "tiny-chat"]) == 0
    found, weights = slc.Diagnosis.load("theirs"), WeightDiagnosis.load("theirs")
    assert found.conclusion in capsys.readouterr().out
    crosscoder = slc.load("theirs", hook_name=TINY_HOOK, model_names=("tiny-base", "tiny-chat"))
    cfg = slc.CrosscoderRunnerConfig(
        sae=slc.L1CrosscoderTrainingConfig(d_model=96, d_sae=24),
        model_name="tiny-base",
        chat_model_name="tiny-chat",
        hook_name=TINY_HOOK,
        dataset_path="tiny-mix",
        context_size=64,
        training_tokens=64,
        train_batch_size_tokens=64,
        lr_warm_up_steps=0,
        n_held_out_rows=8,
        checkpoint_path=None,
    )
    expected = slc.diagnose(crosscoder, slc.CrosscoderTrainingRunner(cfg).held_out_data())
    pd.testing.assert_frame_equal(found.latents, expected.latents)
    for column in ("delta_norm", "cos_sim", "dec_norm_chat"):
        assert found.latents[column].equals(weights.latents[column])


def language_model(folder):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}))
    save_file({"model.embed_tokens.weight": torch.ones(2, 2)}, folder / "model.safetensors")


@pytest.mark.usefixtures("no_models")
def test_what_is_no_crosscoder_is_said_to_be_what_it_is(tmp_path, capsys):
    language_model(tmp_path / "gemma")
    StandardSAE(StandardSAEConfig(d_in=4, d_sae=5)).save_model(tmp_path / "sae")
    (tmp_path / "empty").mkdir()
    for args, message in (
        (["gemma"], "gemma/model.safetensors is a language model (model_type='gemma2'), not a crosscoder"),
        (["sae"], "architecture='standard' is not a crosscoder"),
        (["empty"], "empty is not a crosscoder folder"),
        (["gemma", "--weights_only", "True", "--dataset_path", "tiny-mix"], "weights_only=True needs no data"),
    ):
        assert main(["diagnose", *args]) == 2
        assert message in capsys.readouterr().err
    LAYOUTS["B"].write(tmp_path / "theirs")
    assert main(["diagnose", "theirs", "--models", "base", "chat"]) == 2
    assert "models needs data, but theirs is diagnosed from its weights alone" in capsys.readouterr().err


@pytest.mark.usefixtures("no_models")
def test_a_hub_id_with_a_typo_or_without_a_connection_and_a_language_model_cost_no_download(
    tmp_path, monkeypatch, capsys
):
    def offline(*args, **kwargs):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    assert main(["diagnose", "owner/nmae"]) == 2
    message = capsys.readouterr().err
    assert "'owner/nmae' was not found in" in message
    assert "check the spelling, the connection" in message
    asked = []
    language_model(tmp_path / "cache")
    monkeypatch.setattr(
        hub,
        "snapshot_download",
        lambda *a, allow_patterns, **k: asked.extend(allow_patterns) or str(tmp_path / "cache"),
    )
    assert main(["diagnose", "google/gemma-2-2b"]) == 2
    assert "is a language model" in capsys.readouterr().err
    assert asked == ["config.json"]
