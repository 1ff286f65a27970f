"""The improvement is what the residuals say, on the fitting data and on others, in the trained space."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.latent_scaling.mse_improvement import TargetEnergies, mse_improvement
from sae_lens_crosscoder.crosscoders.canonical import Weights, fold_activation_scales
from tests.analysis.conftest import D_SAE, lists, random_activations, random_crosscoder, scaling_of
from tests.reference import latent_scaling as ref

TARGETS = ("activation", "reconstruction", "error")


def energies_of(crosscoder, x, batch=11):
    energies = TargetEnergies(crosscoder)
    for part in x.split(batch):
        energies.add(part, crosscoder.decode(crosscoder.encode(part)))
    return energies


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [1, 2])
def test_improvement_is_that_of_the_residuals_on_other_data_than_those_fitted(target, seed):
    crosscoder = random_crosscoder()
    fitting, held_out = random_activations(40, seed=1), random_activations(30, seed=seed)
    evaluated, energies = scaling_of(crosscoder, held_out), energies_of(crosscoder, held_out)
    found = mse_improvement(scaling_of(crosscoder, fitting), evaluated, energies)
    for m, name in enumerate(("base", "chat")):
        for j in range(D_SAE):
            factor = ref.beta(target, j, m, 1, *lists(crosscoder, fitting))
            expected = ref.improvement(factor, target, j, m, 1, *lists(crosscoder, held_out))
            assert found[f"{target}_{name}"][j] == pytest.approx(expected, rel=1e-8, abs=1e-10)


def test_on_the_data_it_was_fitted_to_no_factor_does_harm():
    crosscoder, x = random_crosscoder(), random_activations()
    scaling = scaling_of(crosscoder, x)
    fitted = mse_improvement(scaling, scaling, energies_of(crosscoder, x))
    assert ((fitted >= 0) & (fitted <= 1)).all(axis=None)
    other = random_activations(12, seed=5)
    held_out = mse_improvement(scaling_of(crosscoder, other), scaling, energies_of(crosscoder, x))
    assert (held_out <= fitted + 1e-12).all(axis=None)
    assert (held_out < 0).any(axis=None)


def test_scaled_and_centred_models_are_judged_in_the_trained_space():
    scales, means = (0.5, 2.0), ((1.0, -2.0, 3.0), (0.5, 0.0, -1.0))
    inner, outer, x = random_crosscoder(), random_crosscoder(scales=scales), random_activations()
    outer.cfg.activation_means = means
    factors, mean = torch.tensor(scales, dtype=torch.float64), torch.tensor(means, dtype=torch.float64).flatten()
    weights = Weights(inner.W_enc, inner.b_enc, inner.W_dec, inner.b_dec)
    with torch.no_grad():
        for name, tensor in fold_activation_scales(weights, inner.layout, factors, mean)._asdict().items():
            getattr(outer, name).copy_(tensor)
    fed = inner.layout.expand(factors) * (x - mean)
    ours, expected = (
        mse_improvement(scaling, scaling, energies_of(crosscoder, data))
        for crosscoder, data in ((outer, x), (inner, fed))
        for scaling in [scaling_of(crosscoder, data)]
    )
    torch.testing.assert_close(torch.tensor(ours.to_numpy()), torch.tensor(expected.to_numpy()))


def test_a_latent_that_writes_nothing_into_base_is_judged_and_a_silent_one_is_not():
    crosscoder, x = random_crosscoder(), random_activations()
    with torch.no_grad():
        crosscoder.W_dec[0, :3] = 0
        crosscoder.b_enc[1] = -1e9
    scaling = scaling_of(crosscoder, x)
    found = mse_improvement(scaling, scaling, energies_of(crosscoder, x))
    assert found.loc[1].isna().all()
    assert found.drop(index=1).notna().all(axis=None)
    factor = ref.beta("error", 0, 0, 1, *lists(crosscoder, x))
    assert found.error_base[0] == pytest.approx(ref.improvement(factor, "error", 0, 0, 1, *lists(crosscoder, x)))


def test_sums_that_do_not_belong_together_are_refused():
    crosscoder, x = random_crosscoder(), random_activations()
    scaling, energies = scaling_of(crosscoder, x), energies_of(crosscoder, x)
    with pytest.raises(ValueError, match="different crosscoders"):
        mse_improvement(scaling_of(random_crosscoder(), x), scaling, energies)
    probed = slc.analysis.LatentScaling(crosscoder, probes=crosscoder.decoders)
    with pytest.raises(ValueError, match="directions other than the decoders"):
        mse_improvement(probed, scaling, energies)
