"""A latent table comes back as it was, with its own crosscoder, and with what was said about its latents since."""

import json

import pandas as pd
import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.loading import hub
from tests.analysis.conftest import random_activations, random_crosscoder


def diagnosed(crosscoder):
    return slc.diagnose(crosscoder, activations=random_activations(400), min_active=1)


@pytest.fixture
def crosscoder():
    return random_crosscoder(scales=(0.5, 2.0))


def test_it_comes_back_with_its_manifest(crosscoder, tmp_path):
    crosscoder.save_model(tmp_path)
    table = diagnosed(slc.load(tmp_path))
    attrs = dict(table.attrs)
    slc.write_latents(table, tmp_path)
    again = slc.read_latents(tmp_path)
    pd.testing.assert_frame_equal(again, table, check_exact=True)
    assert again.attrs == table.attrs == attrs
    assert json.loads((tmp_path / "cfg.json").read_text())["crosscoder_sha256"] == attrs["crosscoder_sha256"]


def test_a_table_of_another_crosscoder_is_neither_written_nor_read(crosscoder, tmp_path):
    other = diagnosed(random_crosscoder(seed=1))
    crosscoder.save_model(tmp_path / "one")
    with pytest.raises(ValueError, match="and the crosscoder beside it do not belong together"):
        slc.write_latents(other, tmp_path / "one")
    assert not (tmp_path / "one" / "latents.parquet").exists()
    path = slc.write_latents(other, tmp_path / "alone")
    assert len(slc.read_latents(tmp_path / "alone")) == len(other)
    path.rename(tmp_path / "one" / "latents.parquet")
    with pytest.raises(ValueError, match=r"do not belong together.*Diagnose this crosscoder, or keep the table"):
        slc.read_latents(tmp_path / "one")


@pytest.mark.parametrize("column", ["delta_norm", "label", "verdict", "n_active", "dead"])
def test_one_changed_cell_or_name_is_noticed(crosscoder, tmp_path, column):
    table = diagnosed(crosscoder)
    path = slc.write_latents(table, tmp_path)
    sealed = pd.read_parquet(path)
    changed = sealed.copy()
    values = {"delta_norm": 0.123, "label": "other one", "verdict": "genuine?", "n_active": 12345, "dead": True}
    changed.loc[2, column] = values[column]
    for damaged in (changed, sealed.rename(columns={column: "x"}), sealed.iloc[1:], sealed.rename(index={0: 99})):
        damaged.attrs = dict(sealed.attrs)
        damaged.to_parquet(path)
        with pytest.raises(ValueError, match=r"latents.parquet is (damaged|not a latent table)"):
            slc.read_latents(tmp_path)
    sealed.attrs["conclusion"] = "nothing at all"
    sealed.to_parquet(path)
    with pytest.raises(ValueError, match="is damaged"):
        slc.read_latents(tmp_path)


def test_a_table_from_before_there_were_checksums_is_read(crosscoder, tmp_path):
    crosscoder.save_model(tmp_path)
    table = diagnosed(random_crosscoder(seed=1))
    del table.attrs["crosscoder_sha256"]
    table.to_parquet(tmp_path / "latents.parquet")
    pd.testing.assert_frame_equal(slc.read_latents(tmp_path), table)


OF = {"models": ["a", "b"], "seed": 0, "crosscoder_sha256": "x"}


def latents(**attrs):
    table = pd.DataFrame({"delta_norm": [0.0, 0.5, 1.0, 0.9]}, index=pd.RangeIndex(4, name="latent"))
    table.attrs.update({"models": ["a", "b"], "seed": 0, **attrs})
    return table


def explained(rows, **attrs):
    frame = {latent: {"explanation": said, "fuzzing": 0.5, "interpreter": "m"} for latent, said in rows.items()}
    table = pd.DataFrame.from_dict(frame, orient="index").rename_axis("latent")
    table.attrs.update({**OF, **attrs})
    return table


def test_reading_latents_brings_their_explanations(tmp_path):
    table = latents()
    slc.write_latents(table, tmp_path)
    pd.testing.assert_frame_equal(slc.read_latents(tmp_path), table)
    slc.write_interpretations(explained({2: "cities", 0: None}, n_shown=5), tmp_path)
    for _ in range(2):
        joined = slc.read_latents(tmp_path)
        pd.testing.assert_series_equal(joined.delta_norm, table.delta_norm)
        assert joined.explanation.dropna().to_dict() == {2: "cities"}
        assert joined.fuzzing.dropna().to_dict() == {0: 0.5, 2: 0.5}
        assert joined.attrs["seed"] == 0
        assert joined.attrs["interpretation"]["n_shown"] == 5
        slc.write_latents(joined, tmp_path)  # and what was read can be written, and read again


def test_later_explanations_replace_those_of_the_same_latents_only(tmp_path):
    slc.write_latents(latents(), tmp_path)
    slc.write_interpretations(explained({3: "a", 1: "b"}), tmp_path)
    slc.write_interpretations(explained({1: "c", 2: "d"}, n_shown=3), tmp_path)
    joined = slc.read_latents(tmp_path)
    assert joined.explanation.dropna().to_dict() == {1: "c", 2: "d", 3: "a"}
    assert joined.attrs["interpretation"]["n_shown"] == 3
    slc.write_interpretations(explained({0: "e"}, crosscoder_sha256="y"), tmp_path)
    assert slc.read_latents(tmp_path).explanation.dropna().to_dict() == {0: "e"}


@pytest.mark.parametrize(
    ("rows", "attrs", "message"),
    [
        ({1: "a"}, {"seed": 1}, "they differ in seed"),
        ({1: "a"}, {"models": ["a", "c"]}, "they differ in models"),
        ({4: "a"}, {}, "they differ in how many latents"),
    ],
)
def test_explanations_of_another_crosscoder_are_refused(tmp_path, rows, attrs, message):
    slc.write_latents(latents(), tmp_path)
    slc.write_interpretations(explained(rows, **attrs), tmp_path)
    with pytest.raises(ValueError, match=message):
        slc.read_latents(tmp_path)


def test_the_table_of_a_crosscoder_on_the_hub_is_fetched_without_its_weights(crosscoder, tmp_path, monkeypatch):
    table = diagnosed(crosscoder)
    slc.write_latents(table, tmp_path)
    asked = []

    def download(repo_id, allow_patterns, force_download):
        asked.append((repo_id, set(allow_patterns)))
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", download)
    pd.testing.assert_frame_equal(slc.read_latents("owner/name"), table)
    names = {"latents.parquet", "interpretations.parquet", "user_labels.json", "cfg.json"}
    assert asked == [("owner/name", names)]
