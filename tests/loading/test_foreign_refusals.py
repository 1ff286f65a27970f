"""Wrong, partial and dangerous files are refused by name, and nothing in them runs."""

import json
import pickle
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.loading import crosscoder_huggingface_loader
from sae_lens_crosscoder.loading import hub as module
from tests.loading.foreign_files import D_SAE, LAYOUTS, WIDTH, Layout, batchtopk, main_tensors, nanda, normalised

NORMALISED_PER_COORDINATE = normalised(1.0)


def without(tensors, *names):
    return {name: tensor for name, tensor in tensors.items() if name not in names}


def damaged(value):
    tensors = main_tensors()
    tensors["decoder.weight"][1, 2, 3] = value
    return tensors


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (without(main_tensors(), "decoder.weight", "decoder.bias"), "no decoder.weight, decoder.bias"),
        (without(main_tensors(), "encoder.bias"), "Incomplete crosscoder: .* has no encoder.bias"),
        (without(nanda(), "W_dec"), "Incomplete crosscoder: .* has no W_dec"),
        (main_tensors() | {"W_skip": torch.ones(2)}, "unknown tensors, W_skip"),
        (nanda() | {"log_threshold": torch.ones(D_SAE)}, "unknown tensors, log_threshold"),
        ({"weight": torch.ones(2)}, r"unknown layout, with the tensors weight. Known are dictionary_learning"),
        ({}, r"with the tensors \(none\)"),
        (damaged(float("nan")), "decoder.weight contains NaN or infinite"),
        (damaged(float("inf")), "decoder.weight contains NaN or infinite"),
        (main_tensors() | {"encoder.weight": torch.ones(WIDTH, D_SAE)}, r"shape \(5, 9\), .* SAE of one activation"),
        (nanda() | {"W_enc": torch.ones(WIDTH, D_SAE)}, "SAE of one activation"),
        (main_tensors() | {"encoder.weight": torch.ones(3, WIDTH, D_SAE)}, "stacks 3 activations"),
        (main_tensors() | {"decoder.weight": torch.ones(2, WIDTH, D_SAE)}, r"\(2, 5, 9\), expected \(2, 9, 5\)"),
        (main_tensors() | {"encoder.bias": torch.ones(3, D_SAE)}, r"encoder.bias has shape \(3, 9\)"),
        (nanda() | {"b_dec": torch.ones(2, 4)}, r"b_dec has shape \(2, 4\), expected \(2, 5\)"),
        (nanda(hooks=True) | {"W_enc": torch.ones(2, 3, WIDTH, D_SAE)}, r"W_dec has shape .*, expected \(9, 2, 3, 5\)"),
        (batchtopk(-1.0), "threshold is -1, so it was not estimated"),
        (batchtopk(float("inf")), "threshold contains NaN or infinite"),
        (without(batchtopk(), "threshold"), "not estimated"),
        (batchtopk() | {"code_normalization_id": torch.tensor(5)}, "is a decoupled crosscoder .* split_gates=True"),
        (batchtopk() | {"threshold": torch.ones(2)}, "is a decoupled crosscoder .* split_gates=True"),
        (batchtopk() | {"code_normalization_id": torch.tensor(6)}, r"code_normalization_id 6 is not one of \[1, 2, 3"),
        (NORMALISED_PER_COORDINATE, "its own activation_std .*keep_relative_variance off"),
        (normalised([0.4, 0.2, 0.1]), "activation_global_scale has shape"),
        (normalised(torch.ones(2, WIDTH).tolist()), r"shape \(2, 5\), expected one factor"),
        (normalised(float("nan")), "Incomplete normaliser"),
        (without(normalised(0.4), "activation_global_scale"), "Incomplete normaliser"),
        (normalised(0.4, std=torch.full((2, WIDTH), torch.nan)), "activation_std is NaN"),
        (normalised(0.4, activation_mean=torch.ones(2, 4)), r"activation_mean has shape \(2, 4\)"),
        (normalised(-0.4), "must have one positive factor"),
        (normalised(0.4, std=torch.full((2, WIDTH), torch.inf)), "activation_std contains NaN or infinite"),
        (
            main_tensors() | {"decoder.bias": torch.ones(2, WIDTH, dtype=torch.long)},
            "bias has dtype torch.int64",
        ),
        (main_tensors() | {"encoder.bias": torch.ones(D_SAE, dtype=torch.bool)}, "encoder.bias has dtype torch.bool"),
        (batchtopk() | {"k": torch.tensor(7.5)}, "k is 7.5, expected a whole number"),
        (batchtopk() | {"k": torch.ones(2)}, r"k has shape \(2,\), expected one number"),
        (
            main_tensors() | {"decoder.weight": torch.full((2, D_SAE, WIDTH), 2e38)},
            "infinite in .* form.*float64",
        ),
        (main_tensors() | {"../x\x1b[2J" * 500: torch.ones(1)}, r"unknown tensors, '\.\./x\\x1b"),
    ],
)
@pytest.mark.parametrize("name", ["model.safetensors", "model_final.pt"])
def test_a_file_that_cannot_be_converted_is_refused_by_name(tmp_path, tensors, message, name):
    folder = Layout(tensors, name=name).write(tmp_path)
    with pytest.raises(ValueError, match=message):
        slc.load(folder)


@pytest.mark.parametrize(
    ("layout", "options", "message"),
    [
        ("A", {"theta": 1.0}, "theta=1 does not apply to .*: a ReLU crosscoder has no threshold"),
        ("kissane", {"theta": 1.0}, "theta=1 does not apply to .*: a ReLU crosscoder"),
        ("B", {"theta": -1.0}, "theta=-1.0 must be a finite number of at least 0"),
        ("B", {"theta": float("nan")}, "theta=nan.*finite"),
        ("D", {"activation_scales": (1.0, 2.0)}, "contains activation_global_scale"),
        ("kissane", {"format": "dictionary_learning"}, "no encoder.weight"),
        ("A", {"format": "kissane"}, "no W_enc"),
    ],
)
def test_what_contradicts_the_file_is_refused(tmp_path, layout, options, message):
    with pytest.raises(ValueError, match=message):
        slc.load(LAYOUTS[layout].write(tmp_path), **LAYOUTS[layout].options | options)


@pytest.mark.parametrize(
    ("layout", "settings", "message"),
    [
        ("A", {"dict_size": 10}, "has dict_size=10, but the tensors have 9"),
        ("A", {"trainer": {"activation_dim": 2304}}, "has activation_dim=2304"),
        ("C-mixed", {"code_normalization_alpha_cc": 0.5}, "mixes its norms with the weights"),
        ("D", {"keep_relative_variance": False}, "keep_relative_variance off"),
        (
            "crosscode",
            {"activation_fn": {"classname": "TopkActivation"}},
            "says activation_fn.classname=TopkActivation",
        ),
        ("crosscode", {"activation_fn": "tanh"}, "names the activation tanh; only ReLU"),
        ("A", [1], "expected a JSON object, got a list"),
        ("A", {"layer": "../../x"}, "has layer='../../x', expected the number of a layer"),
        ("A", {"layer": -1}, "expected the number of a layer"),
        ("crosscode", {"hook_point": ["x"]}, "expected a short text"),
        ("crosscode", {"hook_point": "a\x1b[2J"}, r"has hook_point='a\\x1b\[2J', expected a short text"),
        ("crosscode", {"hook_point": "x" * 10_000}, "expected a short text"),
    ],
)
def test_settings_that_contradict_the_tensors_are_refused(tmp_path, layout, settings, message):
    folder = LAYOUTS[layout].write(tmp_path)
    (folder / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=message):
        slc.load(folder)


class Malicious:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path):
    mark = tmp_path / "ran"
    tensors = main_tensors() | {"extra": Malicious(mark)}
    torch.save(tensors, tmp_path / "model_final.pt")
    with pytest.raises(ValueError, match=r"its pickle would run code, or is damaged\. Nothing was run"):
        slc.load(tmp_path)
    with pytest.raises(ValueError, match="Nothing was run"):
        SAE.from_pretrained(str(tmp_path), ".", converter=crosscoder_huggingface_loader)
    (tmp_path / "model_final.pt").write_bytes(pickle.dumps(Malicious(mark), protocol=2))
    with pytest.raises(ValueError, match="Nothing was run"):
        slc.load(tmp_path)
    assert not mark.exists()
    torch.load(_saved(tmp_path, tensors), weights_only=False)
    assert mark.exists()  # the bait was live


def _saved(tmp_path, tensors):
    torch.save(tensors, tmp_path / "bait.pt")
    return tmp_path / "bait.pt"


@pytest.mark.parametrize("name", ["model.safetensors", "model_final.pt"])
@pytest.mark.parametrize("n_bytes", [0, 20, 500])
def test_a_file_that_is_cut_off_is_refused(tmp_path, name, n_bytes):
    path = Layout(main_tensors(), name=name).write(tmp_path) / name
    path.write_bytes(path.read_bytes()[:n_bytes])
    with pytest.raises(ValueError, match=r"cannot be read as|Nothing was run"):
        slc.load(tmp_path)


def test_a_flipped_bit_is_noticed_by_the_checksums_that_torch_writes_and_does_not_read(tmp_path):
    path = LAYOUTS["kissane"].write(tmp_path) / "cc_weights.pt"
    data = bytearray(path.read_bytes())
    data[data.index(nanda()["W_enc"].numpy().tobytes()) + 40] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["W_enc"], nanda()["W_enc"])
    with pytest.raises(ValueError, match=r"cc_weights.pt is damaged: checksum mismatch in its record .*data"):
        slc.load(tmp_path)


def test_a_damaged_name_in_an_archive_is_refused_by_the_name_of_the_file(tmp_path):
    path = LAYOUTS["kissane"].write(tmp_path) / "cc_weights.pt"
    data = bytearray(path.read_bytes())
    data[data.index(b"cc_weights/data.pkl") + 3] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cc_weights.pt (is damaged|contains more than tensors)"):
        slc.load(tmp_path)
    data[data.rindex(b"cc_weights/data.pkl") + 3] ^= 0x80
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"cc_weights.pt (is damaged|contains more than tensors)"):
        slc.load(tmp_path)


def test_numbers_too_large_for_float32_are_read_in_float64(tmp_path):
    layout = Layout(main_tensors() | {"decoder.weight": torch.full((2, D_SAE, WIDTH), 2e38)})
    with pytest.warns(UserWarning, match="assumed settings"):
        crosscoder = slc.load(layout.write(tmp_path), dtype="float64")
    assert crosscoder.W_dec.isfinite().all()
    torch.testing.assert_close(crosscoder.decoder_norms, torch.full((D_SAE, 2), 0.5, dtype=torch.float64))


@pytest.mark.parametrize(
    "tensor", [torch.ones(1).expand(2, 10**9), torch.ones(2, 5).to_sparse()], ids=["view", "sparse"]
)
def test_a_tensor_that_says_more_numbers_than_it_holds_is_refused_before_any_is_made(tmp_path, tensor):
    torch.save(main_tensors() | {"decoder.bias": tensor}, tmp_path / "model_final.pt")
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        slc.load(tmp_path)


@pytest.mark.parametrize("content", [[torch.ones(2)], {"state_dict": main_tensors()}, torch.ones(2)])
def test_a_pickle_that_is_no_state_dict_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "model_final.pt")
    with pytest.raises(ValueError, match="is not a dictionary of tensors"):
        slc.load(tmp_path)


def test_damaged_json_is_refused(tmp_path):
    folder = LAYOUTS["A"].write(tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config.json is not valid JSON"):
        slc.load(folder)


def test_a_folder_of_checkpoints_is_refused_by_the_name_of_its_layout(tmp_path):
    for name in ("ae_100.pt", "ae_200.pt"):
        Layout(main_tensors(), name=name).write(tmp_path)
    with pytest.raises(ValueError, match=r"contains 2 crosscoders of the layout dictionary_learning, ae_100.pt, ae_20"):
        slc.load(tmp_path)
    with pytest.warns(UserWarning, match="ae_200.pt was loaded as dictionary_learning"):
        assert slc.load(tmp_path / "ae_200.pt").cfg.d_sae == D_SAE
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match=r"notes.txt is not a weights file"):
        slc.load(tmp_path / "notes.txt")


@pytest.mark.parametrize("repo_id", ["owner/name", "local/folder"])
@pytest.mark.parametrize("folder", ["../other", "a/../../b", "/etc", ".."])
def test_a_path_out_of_a_repository_is_followed_neither_here_nor_on_the_hub(tmp_path, monkeypatch, folder, repo_id):
    monkeypatch.chdir(tmp_path)
    LAYOUTS["A"].write(tmp_path / "local" / "other")
    (tmp_path / "local" / "folder").mkdir()
    monkeypatch.setattr(module, "snapshot_download", lambda *args, **kwargs: pytest.fail("asked the Hub"))
    with pytest.raises(ValueError, match=f"leads out of {repo_id}"):
        SAE.from_pretrained(repo_id, folder, converter=crosscoder_huggingface_loader)


def test_options_for_other_peoples_files_are_refused_for_ours(tmp_path):
    with pytest.warns(UserWarning, match="assumed settings"):
        slc.load(LAYOUTS["B"].write(tmp_path / "theirs")).save_model(tmp_path / "ours")
    with pytest.raises(ValueError, match="hook_name, theta cannot be set for a crosscoder of this package"):
        slc.load(tmp_path / "ours", theta=1.0, hook_name="here")


def crosscoder_with(**fields):
    fields = {"d_model": WIDTH, "d_sae": D_SAE} | fields
    crosscoder = slc.JumpReLUCrosscoder(slc.JumpReLUCrosscoderConfig(**fields))
    crosscoder.load_state_dict({name: torch.rand_like(tensor) for name, tensor in crosscoder.state_dict().items()})
    return crosscoder


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"d_model": None, "d_models": (5, 4)}, r"d_models=\(5, 4\) cannot be saved: .* two models of equal width"),
        ({"d_models": (5, 5, 5)}, "two models of equal width"),
        ({}, "thresholds of this crosscoder, in units of its norm"),
    ],
)
def test_what_the_authors_layout_cannot_hold_is_refused(tmp_path, fields, message):
    with pytest.raises(ValueError, match=message):
        slc.convert.save_dictionary_learning(crosscoder_with(**fields), tmp_path)


def test_the_authors_layout_wants_a_k_and_one_kind_of_threshold(tmp_path):
    crosscoder = crosscoder_with(score="none")
    with pytest.raises(ValueError, match=r"BatchTopK crosscoder is unknown, but .* pass k="):
        slc.convert.save_dictionary_learning(crosscoder, tmp_path)
    assert slc.convert.save_dictionary_learning(crosscoder, tmp_path, k=3) == tmp_path
    crosscoder.threshold.data[2] = 0
    with pytest.raises(ValueError, match="Some thresholds of this crosscoder are 0 and others are not"):
        slc.convert.save_dictionary_learning(crosscoder, tmp_path, k=3)
