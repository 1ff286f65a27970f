"""Two dictionaries of one shape are compared by index and by the best pairing, whatever scale their latents have."""

import copy

import pytest
import torch
from sae_lens import StandardSAE, StandardSAEConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis import DictionaryComparison, compare_dictionaries
from sae_lens_crosscoder.analysis.statistics import dictionaries
from tests.causal.conftest import random_crosscoder
from tests.reference import dictionaries as ref

D_SAE = 6


def crosscoder(seed=0):
    return random_crosscoder((3, 3), seed=seed, d_sae=D_SAE)


def with_latents(one, order):
    """The same dictionary with its latents in another order."""
    other = copy.deepcopy(one)
    with torch.no_grad():
        other.W_dec.copy_(one.W_dec[order])
        other.W_enc.copy_(one.W_enc[:, order])
        other.b_enc.copy_(one.b_enc[order])
        other.threshold.copy_(one.threshold[order])
    return other


def test_cosines_and_the_pairing_are_those_of_loops():
    first, second = crosscoder(0), crosscoder(1)
    table = compare_dictionaries(first, second).latents
    rows = [each.W_dec.tolist() for each in (first, second)]
    columns = [each.W_enc.T.tolist() for each in (first, second)]
    assert tuple(table.match) == ref.best_pairing(*rows)
    for j in range(D_SAE):
        assert table.cos_decoder[j] == pytest.approx(ref.cosine(rows[0][j], rows[1][j]))
        assert table.cos_encoder[j] == pytest.approx(ref.cosine(columns[0][j], columns[1][j]))
        assert table.cos_decoder_chat[j] == pytest.approx(ref.cosine(rows[0][j][3:], rows[1][j][3:]))
        assert table.cos_match[j] == pytest.approx(ref.cosine(rows[0][j], rows[1][table.match[j]]), rel=1e-5)
    assert list(table.moved) == list(table.cos_decoder < 0.7)


def test_a_dictionary_in_another_order_matches_wholly_and_moved_by_index():
    first, order = crosscoder(), torch.tensor([1, 0, 2, 4, 3, 5])
    same, shuffled = compare_dictionaries(first, first), compare_dictionaries(first, with_latents(first, order))
    assert (same.frac_moved, same.frac_same_match) == (0, 1)
    assert shuffled.latents.match.tolist() == order.argsort().tolist()
    assert shuffled.latents.cos_match.tolist() == pytest.approx([1] * D_SAE)
    assert shuffled.frac_same_match == pytest.approx(2 / 6)
    assert shuffled.frac_moved > 0


def test_the_scale_of_a_latent_changes_nothing_and_what_did_change_is_told():
    first = crosscoder()
    scaled = copy.deepcopy(first)
    factor = torch.tensor([2.0, 0.5, 3.0, 1.0, 10.0, 0.1], dtype=torch.float64)
    with torch.no_grad():
        scaled.W_dec /= factor[:, None]
        for weights in (scaled.W_enc, scaled.b_enc, scaled.threshold):
            weights *= factor
    table = compare_dictionaries(first, scaled).latents
    assert table[["cos_decoder", "cos_encoder", "gain_ratio"]].to_numpy() == pytest.approx(1)
    assert table[["threshold_change", "bias_change"]].to_numpy() == pytest.approx(0)
    with torch.no_grad():
        scaled.threshold[2] += 3 * 0.25
        scaled.W_enc[:, 4] *= 2
    changed = compare_dictionaries(first, scaled).latents
    assert changed.threshold_change[2] == pytest.approx(0.25 * first.W_dec[2].norm().item())
    assert changed.gain_ratio.tolist() == pytest.approx([1, 1, 1, 1, 2, 1])


def test_plain_saes_are_compared_and_results_are_saved(tmp_path):
    saes = [StandardSAE(StandardSAEConfig(d_in=4, d_sae=5)) for _ in range(2)]
    with torch.no_grad():
        saes[1].W_dec[3] = 0  # which writes nothing
    compared = compare_dictionaries(*saes)
    assert compared.manifest["n_latents"] == 4
    assert not compared.latents.moved[3]
    assert compared.latents.cos_decoder.isna().tolist() == [False, False, False, True, False]
    again = DictionaryComparison.load(compared.save(tmp_path))
    assert again.latents.equals(compared.latents)
    assert str(again) == str(compared)
    assert "match" not in compare_dictionaries(*saes, matching="none").latents
    with pytest.raises(ValueError, match="has no dictionary_comparison"):
        DictionaryComparison.load(tmp_path / "elsewhere")


@pytest.mark.usefixtures("unchecked_types")
def test_dictionaries_that_cannot_be_compared_are_refused(monkeypatch):
    first = crosscoder()
    for second, message in (
        (random_crosscoder((3, 3), d_sae=7), r"first has d_in and d_sae \(6, 6\), but second has \(6, 7\)"),
        (random_crosscoder((2, 4), d_sae=D_SAE), "read other widths"),
    ):
        with pytest.raises(ValueError, match=message):
            slc.analysis.compare_dictionaries(first, second)
    with pytest.raises(ValueError, match="matching='nearest' is not one of"):
        compare_dictionaries(first, first, matching="nearest")
    with pytest.raises(ValueError, match="min_cosine=2 must lie"):
        compare_dictionaries(first, first, min_cosine=2)
    monkeypatch.setattr(dictionaries, "MAX_ASSIGNED", 5)
    with pytest.raises(ValueError, match="pairs at most 5 latents"):
        compare_dictionaries(first, first)
    assert compare_dictionaries(first, first, matching="none").frac_moved == 0
