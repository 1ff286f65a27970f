"""A saved crosscoder comes back as it was, and whatever is not one is refused by name."""

import json

import pytest
import torch
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from sae_lens import StandardSAE, StandardSAEConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.loading import hub as module
from tests.crosscoders.conftest import any_crosscoder, l1_crosscoder, stacked_batch, step  # noqa: F401  (a fixture)

OTHER_CONFIGS = ("hparams.json", "lm_config.json", "model_cfg.yaml")


@pytest.fixture
def saved(tmp_path):
    crosscoder = l1_crosscoder()
    crosscoder.training_forward_pass(step(stacked_batch()))
    crosscoder.save_inference_model(tmp_path / "saved")
    return tmp_path / "saved"


def test_it_comes_back_as_it_was(saved):
    x = stacked_batch()
    first, second = slc.load(saved), slc.load(str(saved))
    assert torch.equal(first(x), second(x))
    assert first.cfg.d_models == (3, 4)  # a tuple again
    assert slc.load(saved, dtype="float32").W_dec.dtype == torch.float32


@pytest.mark.parametrize("scaling", ["none", "per_model"])
def test_what_is_loaded_reads_what_was_trained(tmp_path, scaling):
    """Same reconstruction as the training form, with scores in place of raw activations."""
    crosscoder, x = l1_crosscoder(activation_scaling=scaling), 3 * stacked_batch()
    crosscoder.training_forward_pass(step(x))
    crosscoder.save_inference_model(tmp_path)
    loaded = slc.load(tmp_path)
    torch.testing.assert_close(loaded(x), crosscoder(x))
    torch.testing.assert_close(loaded.encode(x), crosscoder.encode(x) * crosscoder.score_norms())
    torch.testing.assert_close(loaded.decoder_norms.sum(dim=-1), torch.ones(11, dtype=torch.float64))


def test_a_training_checkpoint_is_refused(tmp_path, any_crosscoder):  # noqa: F811
    any_crosscoder.save_model(tmp_path)
    with pytest.raises(ValueError, match=r"is a training checkpoint \(.*crosscoder\)"):
        slc.load(tmp_path)


def test_another_kind_of_sae_is_refused(tmp_path):
    StandardSAE(StandardSAEConfig(d_in=4, d_sae=3)).save_model(tmp_path)
    with pytest.raises(ValueError, match="architecture='standard' is not a crosscoder"):
        slc.load(tmp_path)


@pytest.mark.parametrize("name", ["cfg.json", "sae_weights.safetensors"])
def test_a_missing_file_is_named(saved, name):
    (saved / name).unlink()
    with pytest.raises(ValueError, match=f"not a crosscoder folder: {name} is missing"):
        slc.load(saved)


def test_an_unknown_key_is_refused_instead_of_dropped(saved):
    cfg = json.loads((saved / "cfg.json").read_text())
    (saved / "cfg.json").write_text(json.dumps({**cfg, "scores": "sum"}))
    with pytest.raises(ValueError, match=r"no field 'scores'. Did you mean 'score'\?"):
        slc.load(saved)


@pytest.mark.parametrize(
    "name",
    ["nothing-here", "a/../b", "/absent/folder", "a//b", "a/b/../../c", "a/b/*", "a/b/[x]", "a/b\\..\\c", "a/b\0"],
)
def test_what_is_neither_folder_nor_hub_id_never_reaches_the_hub(name, monkeypatch):
    monkeypatch.setattr(module, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match="neither a local folder nor a Hub id"):
        slc.load(name)


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("offline"), HFValidationError("bad name")])
def test_what_the_hub_does_not_have_is_said_to_be_no_folder_either(monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(module, "snapshot_download", download)
    with pytest.raises(ValueError, match=r"'runs/l1/final' was not found in .*, on the Hub or in its cache") as caught:
        slc.load("runs/l1/final")
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(("name", "folder"), [("owner/name", ""), ("owner/name/a/b", "a/b")])
def test_a_hub_id_downloads_only_files_of_one_folder_that_a_crosscoder_consists_of(
    saved, tmp_path, monkeypatch, name, folder
):
    asked = {}

    def download(repo_id, allow_patterns, force_download):
        asked.update(repo_id=repo_id, patterns=set(allow_patterns), force_download=force_download)
        target = tmp_path / "hub" / folder
        target.parent.mkdir(parents=True, exist_ok=True)
        if saved.exists():
            saved.rename(target)
        return str(tmp_path / "hub")

    monkeypatch.setattr(module, "snapshot_download", download)
    assert slc.load(name).cfg.d_sae == 11
    prefix = f"{folder}/" if folder else ""
    ours = {"cfg.json", "sae_weights.safetensors", "checksums.json"}
    theirs = {"model.safetensors", "model_final.pt", "cc_weights.pt", "model.pt", "params_layer_*.safetensors"}
    shards = {"model.safetensors.index.json", "model-*-of-*.safetensors"}
    configs = {"config.json", "trainer_config.json", *OTHER_CONFIGS}
    names = ours | theirs | shards | configs
    assert asked == {"repo_id": "owner/name", "patterns": {prefix + name for name in names}, "force_download": False}


def test_a_hub_id_of_one_file_downloads_it_and_what_is_beside_it(tmp_path, monkeypatch):
    patterns = []
    monkeypatch.setattr(
        module,
        "snapshot_download",
        lambda *args, allow_patterns, **kwargs: patterns.extend(allow_patterns) or str(tmp_path),
    )
    with pytest.raises(ValueError, match=r"The Hub repository owner/name has no crosscoder at 'runs/7.pt'"):
        slc.load("owner/name/runs/7.pt")
    assert set(patterns) == {
        f"runs/{name}"
        for name in ("7.pt", "7_cfg.json", "cfg.json", "config.json", "trainer_config.json", *OTHER_CONFIGS)
    }
