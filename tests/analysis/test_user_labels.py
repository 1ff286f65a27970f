"""Labels come back as they were written, beside their own weights, or not at all."""

import json

import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.folder import crosscoder_digest
from tests.analysis.conftest import random_activations, random_crosscoder
from tests.report.made_up import HOSTILE

NAME = "user_labels.json"


@pytest.fixture
def folder(tmp_path):
    random_crosscoder().save_model(tmp_path)
    return tmp_path


def test_labels_survive_and_can_be_changed_and_taken_away(folder):
    assert slc.analysis.load_labels(folder) == {}
    path = slc.analysis.save_label(folder, 5, HOSTILE)
    slc.analysis.save_label(folder, 0, "f\u00fcr \U0001f469\u200d\U0001f680")
    slc.analysis.save_label(folder, 2, "first")
    slc.analysis.save_label(folder, 2, "second")
    assert slc.analysis.load_labels(folder) == {0: "f\u00fcr \U0001f469\u200d\U0001f680", 2: "second", 5: HOSTILE}
    slc.analysis.save_label(folder, 0, None)
    slc.analysis.save_label(folder, 1, None)
    assert slc.analysis.load_labels(folder) == {2: "second", 5: HOSTILE}
    assert [each.name for each in folder.iterdir() if "label" in each.name] == [path.name] == [NAME]


def test_the_table_has_them_as_a_column(folder):
    diagnosis = slc.diagnose(slc.load(folder), slc.EvalData(activations=random_activations(400)), min_active=1)
    diagnosis.save(folder)
    assert "user_label" not in slc.Diagnosis.load(folder).latents
    slc.analysis.save_label(folder, 3, "a label")
    loaded = slc.Diagnosis.load(folder)
    assert loaded.latents.user_label.dropna().to_dict() == {3: "a label"}
    assert loaded.manifest == diagnosis.manifest


@pytest.mark.parametrize("text", ["", " \n", "x" * 1001, "\ud800"])
def test_what_is_no_label_is_not_written(folder, text):
    slc.analysis.save_label(folder, 2, "kept")
    with pytest.raises(ValueError, match="is not a valid label"):
        slc.analysis.save_label(folder, 2, text)
    assert slc.analysis.load_labels(folder) == {2: "kept"}


@pytest.mark.parametrize("latent", [-1, 6])
def test_latents_that_do_not_exist_get_none(folder, latent):
    with pytest.raises(ValueError, match="latents 0 to 5"):
        slc.analysis.save_label(folder, latent, "x")
    with pytest.raises(ValueError, match="contains no crosscoder"):
        slc.analysis.save_label(folder / "elsewhere", 0, "x")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: {**f, "labels": {"6": "x"}}, "'6' is not a latent"),
        (lambda f: {**f, "labels": {"02": "x"}}, "'02' is not a latent"),
        (lambda f: {**f, "labels": {"\u0662": "x"}}, "is not a latent"),
        (lambda f: {**f, "labels": {"2": 3}}, "'2' is not a latent"),
        (lambda f: {**f, "labels": ["x"]}, "contains no labels"),
        (lambda f: {**f, "more": 1}, "contains no labels"),
        (lambda f: {**f, "crosscoder_sha256": "00"}, "belongs to another crosscoder"),
    ],
)  # fmt: skip
def test_damaged_labels_and_those_of_other_weights_are_refused_and_kept(folder, damage, said):
    path = slc.analysis.save_label(folder, 2, "mine")
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    (folder / "checksums.json").write_text(json.dumps({"crosscoder_sha256": crosscoder_digest(folder)}))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=said):
        slc.analysis.load_labels(folder)
    with pytest.raises(ValueError, match=said):
        slc.analysis.save_label(folder, 2, "other")
    assert path.read_bytes() == before


def test_labels_edited_by_hand_are_read_with_a_warning(folder):
    path = slc.analysis.save_label(folder, 2, "mine")
    path.write_text(path.read_text().replace("mine", "yours"))
    with pytest.warns(UserWarning, match=r"user_labels.json was edited after it was written"):
        assert slc.analysis.load_labels(folder) == {2: "yours"}


@pytest.mark.filterwarnings("ignore:.*was edited after")
def test_a_file_that_is_cut_off_is_refused(folder):
    path = slc.analysis.save_label(folder, 2, "mine")
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ValueError, match="not valid JSON"):
        slc.analysis.load_labels(folder)
