"""A diagnosis comes back as it was, with its own crosscoder, and with what was said about its latents since."""

import json

import pandas as pd
import pyarrow.parquet as pq
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.tables.parquet import load_table, save_table
from sae_lens_crosscoder.loading import hub
from tests.analysis.conftest import random_activations, random_crosscoder


def diagnosed(crosscoder):
    return slc.diagnose(crosscoder, slc.EvalData(activations=random_activations(400)), min_active=1)


@pytest.fixture
def crosscoder():
    return random_crosscoder(scales=(0.5, 2.0))


def test_it_comes_back_with_its_manifest(crosscoder, tmp_path):
    crosscoder.save_model(tmp_path)
    diagnosis = diagnosed(slc.load(tmp_path))
    diagnosis.save(tmp_path)
    again = slc.Diagnosis.load(tmp_path)
    pd.testing.assert_frame_equal(again.latents, diagnosis.latents, check_exact=True)
    assert again.manifest == diagnosis.manifest
    assert again.interpretation is None
    assert (
        json.loads((tmp_path / "checksums.json").read_text())["crosscoder_sha256"]
        == again.manifest["crosscoder_sha256"]
    )


def test_a_diagnosis_of_another_crosscoder_is_neither_saved_nor_loaded(crosscoder, tmp_path):
    other = diagnosed(random_crosscoder(seed=1))
    crosscoder.save_model(tmp_path / "one")
    with pytest.raises(ValueError, match="belongs to another crosscoder than the one in its folder"):
        other.save(tmp_path / "one")
    assert not (tmp_path / "one" / "latents.parquet").exists()
    path = other.save(tmp_path / "alone")
    assert len(slc.Diagnosis.load(tmp_path / "alone").latents) == len(other.latents)
    path.rename(tmp_path / "one" / "latents.parquet")
    with pytest.raises(ValueError, match=r"another crosscoder.*Diagnose this crosscoder, or keep the table"):
        slc.Diagnosis.load(tmp_path / "one")


@pytest.mark.parametrize("column", ["delta_norm", "label", "verdict", "n_active", "dead"])
def test_one_changed_cell_or_name_is_noticed(crosscoder, tmp_path, column):
    path = diagnosed(crosscoder).save(tmp_path)
    saved = pq.read_table(path)
    table = saved.to_pandas()
    changed = table.copy()
    values = {"delta_norm": 0.123, "label": "other one", "verdict": "genuine?", "n_active": 12345, "dead": True}
    changed.loc[2, column] = values[column]
    damaged = [changed, table.rename(columns={column: "x"}), table.iloc[1:], table.rename(index={0: 99})]
    for frame in damaged:
        pq.write_table(saved.from_pandas(frame).replace_schema_metadata(saved.schema.metadata), path)
        with pytest.raises(ValueError, match="checksum mismatch"):
            slc.Diagnosis.load(tmp_path)


def test_a_damaged_text_is_refused_by_the_name_of_the_file(tmp_path):
    save_table(pd.DataFrame({"label": ["shared", "chat_only"]}), {}, tmp_path / "latents.parquet")
    whole = (tmp_path / "latents.parquet").read_bytes()
    assert b"chat_only" in whole
    (tmp_path / "latents.parquet").write_bytes(whole.replace(b"chat_only", b"chat\xffonly"))  # no UTF-8
    with pytest.raises(ValueError, match=r"latents.parquet is not a latent table of this package"):
        load_table(tmp_path / "latents.parquet")


def test_a_changed_manifest_is_noticed(crosscoder, tmp_path):
    path = diagnosed(crosscoder).save(tmp_path)
    saved = pq.read_table(path)
    (key,) = (key for key in saved.schema.metadata if key.endswith(b"manifest"))
    manifest = {**json.loads(saved.schema.metadata[key]), "conclusion": "nothing at all"}
    pq.write_table(saved.replace_schema_metadata({**saved.schema.metadata, key: json.dumps(manifest)}), path)
    with pytest.raises(ValueError, match="checksum mismatch"):
        slc.Diagnosis.load(tmp_path)


def test_a_table_without_a_manifest_is_refused(crosscoder, tmp_path):
    diagnosed(crosscoder).latents.to_parquet(tmp_path / "latents.parquet")
    with pytest.raises(ValueError, match="not a latent table of this package"):
        slc.Diagnosis.load(tmp_path)


OF = {"models": ["a", "b"], "seed": 0, "crosscoder_sha256": "x"}


def latents():
    table = pd.DataFrame({"delta_norm": [0.0, 0.5, 1.0, 0.9]}, index=pd.RangeIndex(4, name="latent"))
    return slc.Diagnosis(table, {"models": ["a", "b"], "seed": 0})


def explained(rows, **fields):
    frame = {latent: {"explanation": text, "fuzzing": 0.5, "interpreter": "m"} for latent, text in rows.items()}
    return slc.analysis.Interpretations(
        pd.DataFrame.from_dict(frame, orient="index").rename_axis("latent"), {**OF, **fields}
    )


def test_loading_a_diagnosis_brings_its_explanations(tmp_path):
    diagnosis = latents()
    diagnosis.save(tmp_path)
    pd.testing.assert_frame_equal(slc.Diagnosis.load(tmp_path).latents, diagnosis.latents)
    slc.analysis.save_interpretations(explained({2: "cities", 0: None}, n_shown=5), tmp_path)
    for _ in range(2):
        joined = slc.Diagnosis.load(tmp_path)
        pd.testing.assert_series_equal(joined.latents.delta_norm, diagnosis.latents.delta_norm)
        assert joined.latents.explanation.dropna().to_dict() == {2: "cities"}
        assert joined.latents.fuzzing.dropna().to_dict() == {0: 0.5, 2: 0.5}
        assert joined.manifest["seed"] == 0
        assert joined.interpretation["n_shown"] == 5
        joined.save(tmp_path)  # and what was loaded can be saved, and loaded again


def test_later_explanations_replace_those_of_the_same_latents_only(tmp_path):
    latents().save(tmp_path)
    slc.analysis.save_interpretations(explained({3: "a", 1: "b"}), tmp_path)
    slc.analysis.save_interpretations(explained({1: "c", 2: "d"}, n_shown=3), tmp_path)
    joined = slc.Diagnosis.load(tmp_path)
    assert joined.latents.explanation.dropna().to_dict() == {1: "c", 2: "d", 3: "a"}
    assert joined.interpretation["n_shown"] == 3
    slc.analysis.save_interpretations(explained({0: "e"}, crosscoder_sha256="y"), tmp_path)
    assert slc.Diagnosis.load(tmp_path).latents.explanation.dropna().to_dict() == {0: "e"}


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ({1: "a"}, {"seed": 1}, "they differ in seed"),
        ({1: "a"}, {"models": ["a", "c"]}, "they differ in models"),
        ({4: "a"}, {}, "they differ in the number of latents"),
    ],
)
def test_explanations_of_another_crosscoder_are_refused(tmp_path, rows, fields, message):
    latents().save(tmp_path)
    slc.analysis.save_interpretations(explained(rows, **fields), tmp_path)
    with pytest.raises(ValueError, match=message):
        slc.Diagnosis.load(tmp_path)


def test_a_diagnosis_on_the_hub_is_fetched_without_the_weights(crosscoder, tmp_path, monkeypatch):
    diagnosis = diagnosed(crosscoder)
    diagnosis.save(tmp_path)
    asked = []

    def download(repo_id, allow_patterns, force_download):
        asked.append((repo_id, set(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    pd.testing.assert_frame_equal(slc.Diagnosis.load("owner/name").latents, diagnosis.latents)
    names = {"latents.parquet", "interpretations.parquet", "user_labels.json", "cfg.json", "checksums.json"}
    assert asked == [("owner/name", names)]
