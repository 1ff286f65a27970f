"""Checksums beside a crosscoder: damaged weights are refused, an edited config loads with a warning."""

import json

import pytest
import torch
from sae_lens import SAE
from safetensors.torch import load_file, save_file

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.folder import crosscoder_digest
from tests.crosscoders.conftest import batchtopk_crosscoder, l1_crosscoder, stacked_batch, step

WEIGHTS = "sae_weights.safetensors"


@pytest.fixture(params=[l1_crosscoder, batchtopk_crosscoder])
def saved(request, tmp_path):
    crosscoder = request.param(activation_scaling="per_model")
    crosscoder.training_forward_pass(step(3 * stacked_batch()))
    crosscoder.save_inference_model(tmp_path / "saved")
    return tmp_path / "saved"


def edit(folder, change):
    cfg = json.loads((folder / "cfg.json").read_text())
    change(cfg)
    (folder / "cfg.json").write_text(json.dumps(cfg))


def test_saelens_reads_what_we_saved_and_saves_what_we_read(saved, tmp_path):
    x = stacked_batch()
    ours, theirs = slc.load(saved), SAE.load_from_disk(saved)
    assert torch.equal(ours(x), theirs(x))
    assert ours.cfg.to_dict() == theirs.cfg.to_dict()
    assert not {"sha256", "crosscoder_sha256"} & set(theirs.cfg.to_dict())
    theirs.save_model(tmp_path / "again")
    again, first = (json.loads((folder / "cfg.json").read_text()) for folder in (tmp_path / "again", saved))
    assert again == first
    assert crosscoder_digest(tmp_path / "again") == crosscoder_digest(saved)
    assert torch.equal(slc.load(tmp_path / "again")(x), ours(x))


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_another_precision_is_checked_in_the_files_own(saved, dtype):
    loaded = slc.load(saved, dtype=dtype)
    dtypes = {name: tensor.dtype for name, tensor in loaded.state_dict().items()}
    at_least_float32 = torch.promote_types(getattr(torch, dtype), torch.float32)
    assert dtypes.pop("threshold", at_least_float32) == at_least_float32
    assert set(dtypes.values()) == {getattr(torch, dtype)}
    assert torch.equal(loaded.W_dec, slc.load(saved).W_dec.to(loaded.W_dec.dtype))


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
def test_one_changed_weight_is_refused(saved, name):
    tensors = load_file(saved / WEIGHTS)
    tensors[name].view(-1)[1] += 1e-3
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(ValueError, match=f"{WEIGHTS}: checksum mismatch: .* Download it again"):
        slc.load(saved)


@pytest.mark.parametrize(
    "change",
    [
        lambda cfg: cfg["metadata"].update(hook_name="blocks.9.hook_resid_post"),
        lambda cfg: cfg.update(activation_scales=[1.0, 1.0]),
        lambda cfg: cfg.update(activation_scales=None),
        lambda cfg: cfg["metadata"].pop("sae_lens_training_version"),
    ],
)
def test_a_config_edited_by_hand_loads_with_one_warning_that_names_it(saved, change):
    edit(saved, change)
    cfg = json.loads((saved / "cfg.json").read_text())
    with pytest.warns(UserWarning, match=r"cfg.json was edited after it was written") as caught:
        loaded = slc.load(saved).cfg
    assert len(caught) == 1
    scales = cfg["activation_scales"]
    assert loaded.metadata.hook_name == cfg["metadata"].get("hook_name")
    assert loaded.activation_scales == (scales and tuple(scales))


def test_weights_of_another_crosscoder_are_refused_unless_the_checksums_are_deleted(saved, tmp_path):
    other = slc.load(saved)
    with torch.no_grad():
        other.b_dec.add_(1)
    other.save_model(tmp_path / "other")
    (saved / WEIGHTS).write_bytes((tmp_path / "other" / WEIGHTS).read_bytes())
    with pytest.raises(ValueError, match="checksum mismatch"):
        slc.load(saved)
    (saved / "checksums.json").unlink()
    assert torch.equal(slc.load(saved).b_dec, other.b_dec)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors.pop("b_dec"),
            "contains the tensors W_dec, W_enc, b_enc.*describes W_dec, W_enc",
        ),
        (lambda tensors: tensors.update(b_dec=tensors["b_dec"][1:].clone()), r"b_dec has shape \(6,\), but .* \(7,\)"),
        (lambda tensors: tensors.update(b_dec=tensors["b_dec"].long()), "b_dec has dtype torch.int64"),
        (lambda tensors: tensors["W_enc"].view(-1)[3].fill_(torch.nan), "W_enc contains NaN or infinity"),
        (lambda tensors: tensors.update({"x\x1b[2J" * 50: torch.zeros(1)}), r"contains the tensors .*x\\x1b"),
    ],
)
def test_without_checksums_weights_that_cannot_be_are_refused_all_the_same(saved, change, message):
    (saved / "checksums.json").unlink()
    tensors = load_file(saved / WEIGHTS)
    change(tensors)
    save_file(tensors, saved / WEIGHTS)
    with pytest.raises(ValueError, match=message) as caught:
        slc.load(saved)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_sae": "11"}, r"invalid value: `d_sae='11'` \(expected int\)"),
        ({"d_sae": 10**30}, "expected int"),
        ({"d_models": None, "d_in": 7, "d_model": None}, "is odd"),
        ({"d_models": [3, "x"]}, "invalid value: `d_models="),
        ({"dtype": ["float32"]}, "invalid value: `dtype="),
        ({"metadata": {"self": 1, "sae_lens_version": "6.54.12"}}, "metadata has reserved names: self"),
        ({"metadata": []}, "metadata=.* must be an object"),
        ({"metadata": {}}, "metadata.sae_lens_version is missing"),
        ({"metadata": {"sae_lens_version": "5.11.0"}}, "metadata.sae_lens_version is missing or below 6"),
        (
            {"metadata": {"sae_lens_version": "6.54.12", "training_architecture_details": [1]}},
            "details must be an object",
        ),
        ({"metadata": {"sae_lens_version": "6.54.12", "hook_name": ["x"]}}, "metadata.hook_name=.* must be a string"),
        ({"architecture": ["crosscoder"]}, "is not a crosscoder"),
    ],
)
def test_a_config_of_wrong_types_is_refused_by_name(saved, fields, message):
    edit(saved, lambda cfg: cfg.update(fields))
    with pytest.raises(ValueError, match=message) as caught:
        slc.load(saved)
    assert str(saved) in str(caught.value)
