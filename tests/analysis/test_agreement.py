"""Agreement of two crosscoders: latents are matched whatever their order, and disagreement shows."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.statistics.agreement import agreement, match_latents
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder


def shuffled(crosscoder, order):
    return relu_crosscoder(
        crosscoder.W_dec[order].detach() * 3,
        crosscoder.b_dec.detach(),
        crosscoder.W_enc[:, order].detach() / 3,
        crosscoder.b_enc[order].detach() / 3,
    )


def test_the_same_latents_in_another_order_agree_in_everything():
    first = random_crosscoder()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    second = shuffled(first, order)
    matches = match_latents(first, second)
    assert [order[j].item() for j in matches.match] == list(range(6))
    assert matches.mutual.all()
    assert matches.cosine.to_numpy() == pytest.approx(1)
    x = [random_activations(2000)]
    said = agreement(
        first,
        second,
        *(slc.diagnose(crosscoder, slc.EvalData(activations=x)).latents for crosscoder in (first, second)),
    )
    assert (said.frac_matched == 1).all()
    assert (said.frac_agreed == 1).all()


def naive_best(rows, columns):
    best = []
    for row in rows.tolist():
        cosines = [torch.cosine_similarity(torch.tensor(row), torch.tensor(c), dim=0).item() for c in columns.tolist()]
        best.append(cosines.index(max(cosines)))
    return best


def test_matches_are_the_nearest_by_stacked_cosine_and_mutual_where_each_is_the_others():
    first, second = random_crosscoder(0), random_crosscoder(7)
    matches = match_latents(first, second)
    there, back = naive_best(first.W_dec, second.W_dec), naive_best(second.W_dec, first.W_dec)
    assert matches.match.tolist() == there
    assert matches.mutual.tolist() == [back[j] == i for i, j in enumerate(there)]
    assert not matches.mutual.all()


def test_activation_scales_count_as_in_the_trained_space():
    """What is equal in the trained spaces is equal, however differently the models were scaled."""
    first, second = random_crosscoder(scales=(1.0, 1.0)), random_crosscoder(scales=(0.5, 4.0))
    with torch.no_grad():
        second.W_dec.copy_(first.W_dec / second.layout.expand(second.activation_scales))
    assert match_latents(first, second).cosine.to_numpy() == pytest.approx(1)


def test_dead_latents_and_latents_that_write_nothing_match_nothing():
    first, second = random_crosscoder(), shuffled(random_crosscoder(), torch.arange(6))
    with torch.no_grad():
        first.W_dec[2] = 0
        second.b_enc[4] = -1e9
    matches = match_latents(first, second)
    assert (matches.match[2], matches.mutual[2]) == (-1, False)
    tables = [
        slc.diagnose(crosscoder, slc.EvalData(activations=[random_activations(2000)])).latents
        for crosscoder in (first, second)
    ]
    assert tables[1].dead[4]
    said = agreement(first, second, *tables)
    name = ("label", tables[0].label[4])
    same = tables[0].label == name[1]
    assert said.frac_matched[name] == pytest.approx(1 - 1 / same.sum())


def test_what_cannot_be_compared_is_refused():
    with pytest.raises(ValueError, match=r"widths \(3, 3\) and \(2, 4\)"):
        match_latents(random_crosscoder(), random_crosscoder(d_models=(2, 4)))
