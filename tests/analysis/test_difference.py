"""Laws of the shares in a difference: those of a reference in loops, adding up to the whole, largest first."""

import numpy as np
import pytest
import torch

import sae_lens_crosscoder as slc
from tests.analysis.conftest import random_activations, random_crosscoder, relu_crosscoder
from tests.reference.difference import share


@pytest.mark.parametrize("scales", [None, (0.5, 2.0)])
def test_shares_are_the_references_and_add_up_to_one(scales):
    crosscoder = random_crosscoder(scales=scales)
    for stacked in random_activations(10):
        found = slc.analysis.difference_shares(crosscoder, stacked)
        table = found.latents
        scores = crosscoder.encode(stacked[None])[0].tolist()
        assert sorted(table.index) == [j for j, score in enumerate(scores) if score > 0]
        assert table.share.is_monotonic_decreasing
        W_dec, b_dec, h = crosscoder.W_dec.tolist(), crosscoder.b_dec.tolist(), stacked.tolist()
        for latent, row in table.iterrows():
            expected = share(scores[latent], W_dec[latent][:3], W_dec[latent][3:], h[:3], h[3:])
            assert (row.score, row.share) == pytest.approx((scores[latent], expected))
        assert found.share_of_biases == pytest.approx(share(1, b_dec[:3], b_dec[3:], h[:3], h[3:]))
        error = (stacked - crosscoder(stacked[None])[0]).tolist()
        assert found.share_of_error == pytest.approx(share(1, error[:3], error[3:], h[:3], h[3:]))
        assert found.share_of_latents + found.share_of_biases + found.share_of_error == pytest.approx(1)


def test_the_latent_that_makes_the_difference_has_all_of_it():
    crosscoder = relu_crosscoder([[1.0, 0, 0, 1, 0, 0], [0, 0, 0, 0, 1, 0]])
    table = slc.analysis.difference_shares(crosscoder, torch.tensor([2.0, 0, 0, 2, 3, 0])).latents
    assert table.share.to_dict() == {1: 1.0, 0: 0.0}
    assert table.score.to_dict() == {1: 3.0, 0: 4.0}


def test_no_difference_has_no_shares_and_models_of_two_widths_none_either():
    equal = random_activations(1, d_in=3)[0].repeat(2)
    found = slc.analysis.difference_shares(random_crosscoder(), equal)
    assert len(found.latents) > 0
    assert np.isnan([*found.latents.share, found.share_of_error]).all()
    with pytest.raises(ValueError, match=r"base and chat have widths \(2, 3\)"):
        slc.analysis.difference_shares(random_crosscoder(d_models=(2, 3)), random_activations(1, d_in=5)[0])
