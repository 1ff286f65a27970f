"""What is said about latents stays beside the latent table, and with the crosscoder that it is about."""

import pandas as pd
import pytest

import sae_lens_crosscoder as slc

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
