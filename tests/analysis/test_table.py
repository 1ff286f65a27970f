"""A latent table comes back as it was, from its own crosscoder's folder or from one of its own."""

import json

import pandas as pd
import pytest

import sae_lens_crosscoder as slc
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
