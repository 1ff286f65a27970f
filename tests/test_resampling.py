"""The bootstrap and the paired sign-flip test, against their definitions."""

import itertools

import pytest
import torch

from sae_lens_crosscoder.resampling import bootstrap_counts, quantiles, sign_flip_p_values


def test_each_resample_draws_as_many_units_as_there_are():
    counts = bootstrap_counts(7, 200, seed=0)
    assert (counts.sum(dim=-1) == 7).all()
    assert counts.mean(dim=0).tolist() == pytest.approx([1] * 7, abs=0.25)
    assert torch.equal(counts, bootstrap_counts(7, 200, seed=0))
    assert not torch.equal(counts, bootstrap_counts(7, 200, seed=1))


@pytest.mark.parametrize("n_units", [0, 1])
def test_fewer_than_two_units_have_no_spread(n_units):
    counts = bootstrap_counts(n_units, 5, seed=0)
    assert counts.tolist() == [[0.0] * n_units] * 5


def test_the_bootstrap_error_of_a_mean_is_its_standard_error():
    values = torch.randn(400, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    means = bootstrap_counts(400, 4000, seed=0) @ values / 400
    assert means.std().item() == pytest.approx(values.std().item() / 20, rel=0.05)


def test_quantiles_interpolate_like_torch_and_keep_nan():
    values = torch.randn(3, 401, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values[1, 7] = torch.nan
    expected = torch.quantile(values, torch.tensor([0.025, 0.975], dtype=torch.float64), dim=-1)
    torch.testing.assert_close(quantiles(values), expected, rtol=1e-15, atol=0, equal_nan=True)
    assert quantiles(values)[:, 1].isnan().all()
    assert torch.equal(quantiles(values[:, :1]), values[:, 0].expand(2, 3))


def test_p_values_are_the_share_of_sign_flips_at_least_as_far_from_zero():
    differences = torch.randn(2, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.5
    flips = torch.tensor(list(itertools.product((1.0, -1.0), repeat=10)), dtype=torch.float64)
    totals = differences @ flips.T
    exact = (totals.abs() >= totals[:, :1].abs() - 1e-9).double().mean(dim=-1)
    estimates = sign_flip_p_values(differences, n_resamples=20_000)
    assert estimates.tolist() == pytest.approx(exact.tolist(), abs=0.01)
    assert torch.equal(estimates, sign_flip_p_values(-differences, n_resamples=20_000))
