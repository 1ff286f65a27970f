"""One pass for everything says what each analysis says on its own."""

from inspect import unwrap

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.paper.paper_tables import MSE_PREFIX
from tests.analysis.conftest import D_SAE, random_activations, random_crosscoder, relu_crosscoder, scaling_of

N_ROWS, N_POS = 30, 20
GROUPS = slc.data.TokenGroups(
    torch.randint(-1, 3, (N_ROWS, N_POS), generator=torch.Generator().manual_seed(3)), ("bos", "template", "user")
)
SOURCES = ["chat", "web"] * (N_ROWS // 2)


def decoupled_crosscoder():
    """Latents 0 and 1 write one direction, one into each model; two more pairs of them are not that close."""
    W_dec = torch.randn(D_SAE, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    W_dec[0, :3], W_dec[1, 3:] = 1e-3 * W_dec[0, :3], 1e-3 * W_dec[1, 3:]
    W_dec[1, :3] = W_dec[0, 3:] + 0.01
    return relu_crosscoder(W_dec)


def batches(x, size=100):
    return list(x.split(size))


@pytest.fixture(scope="module")
def measured():
    crosscoders = {"a": random_crosscoder(), "b": decoupled_crosscoder()}
    for crosscoder in crosscoders.values():  # the two sets of tokens would give other limits
        crosscoder.cfg.metadata.max_norms = [100.0, 100.0]
    x = random_activations(N_ROWS * N_POS)
    x[GROUPS.labels.flatten() < 0] *= 3  # what is left out would show
    data = slc.EvalData(activations=batches(x), groups=GROUPS, sources=SOURCES)
    return crosscoders, x, slc.paper.paper_tables(crosscoders, data)


@pytest.mark.parametrize("name", ["a", "b"])
def test_the_columns_are_those_of_diagnose_and_of_the_statistics(measured, name):
    crosscoders, x, tables = measured
    latents, manifest = tables[name].latents, tables[name].manifest
    kept = GROUPS.labels.flatten() >= 0
    kept_groups = slc.data.TokenGroups(GROUPS.labels.flatten()[kept][:, None], GROUPS.names)
    diagnosis = slc.diagnose(crosscoders[name], slc.EvalData(activations=x[kept], groups=kept_groups))
    pd.testing.assert_frame_equal(latents[diagnosis.latents.columns], diagnosis.latents, check_like=True)
    for key, value in diagnosis.manifest.items():
        assert manifest[key] == (pytest.approx(value) if key.startswith("fve") else value), key
    data = slc.EvalData(activations=batches(x), groups=GROUPS, sources=SOURCES)
    statistics = slc.analysis.latent_statistics(crosscoders[name], data)
    pd.testing.assert_frame_equal(latents[statistics.table.columns], statistics.table)
    assert manifest["n_tokens_per_place"] == statistics.n_tokens
    assert manifest["fve"] == pytest.approx(statistics.fve)


def test_the_mse_improvement_is_fitted_on_every_second_batch_and_judged_on_the_others(measured):
    crosscoders, x, tables = measured
    kept = [batch[label >= 0] for batch, label in zip(x.split(100), GROUPS.labels.flatten().split(100), strict=True)]
    fit, judge = torch.cat(kept[0::2]), torch.cat(kept[1::2])
    for name, crosscoder in crosscoders.items():
        energies = slc.analysis.TargetEnergies(crosscoder)
        energies.add(judge, crosscoder.decode(crosscoder.encode(judge)))
        expected = slc.analysis.mse_improvement(scaling_of(crosscoder, fit), scaling_of(crosscoder, judge), energies)
        assert expected.notna().any(axis=None)
        found = tables[name].latents.filter(like=MSE_PREFIX)
        pd.testing.assert_frame_equal(found, expected.add_prefix(MSE_PREFIX))


def test_pairs_come_with_their_divergence_on_the_tokens_that_count(measured):
    crosscoders, x, tables = measured
    assert tables["a"].pairs.empty
    pairs = tables["b"].pairs
    assert pairs[["chat_latent", "base_latent"]].to_numpy().tolist() == [[0, 1]]
    kept = x[GROUPS.labels.flatten() >= 0]
    expected = slc.analysis.activation_divergence(
        crosscoders["b"], slc.EvalData(activations=kept), pairs[["chat_latent", "base_latent"]]
    )
    pd.testing.assert_frame_equal(pairs[expected.columns], expected)
    everything = slc.analysis.activation_divergence(
        crosscoders["b"], slc.EvalData(activations=x), pairs[["chat_latent", "base_latent"]]
    )
    assert everything.chat_max[0] > expected.chat_max[0]
    assert expected.n_high[0] > 0


def test_crosscoders_do_not_depend_on_their_neighbours(measured):
    crosscoders, x, tables = measured
    alone = slc.paper.paper_tables(
        {"b": crosscoders["b"]}, slc.EvalData(activations=batches(x), groups=GROUPS, sources=SOURCES)
    )
    pd.testing.assert_frame_equal(alone["b"].latents, tables["b"].latents)


def test_widths_without_a_common_direction_have_classes_but_no_nu_and_no_pairs():
    crosscoder = random_crosscoder(d_models=(3, 5))
    table = slc.paper.paper_tables({"w": crosscoder}, slc.EvalData(activations=random_activations(200, d_in=8)))["w"]
    assert table.pairs.empty
    assert table.latents[["nu_error", "cos_sim"]].isna().all(axis=None)
    assert table.latents.delta_norm.notna().all()
    assert 0 < table.latents.frequency.max() <= 1


def test_what_cannot_be_measured_together_is_refused_before_anything_runs():
    crosscoder, other = random_crosscoder(), random_crosscoder(1)
    other.cfg.metadata.hook_name = "elsewhere"
    x = random_activations()
    unchecked = unwrap(slc.paper.paper_tables)
    with pytest.raises(ValueError, match="`crosscoders` is empty"):
        slc.paper.paper_tables({}, slc.EvalData(activations=x))
    with pytest.raises(ValueError, match="'b' reads None, None, elsewhere"):
        slc.paper.paper_tables({"a": crosscoder, "b": other}, slc.EvalData(activations=x))
    with pytest.raises(ValueError, match="can be read only once"):
        slc.paper.paper_tables({"a": crosscoder}, slc.EvalData(activations=iter([x])))
    with pytest.raises(ValueError, match="needs an inference crosscoder"):
        unchecked({"a": torch.nn.Linear(1, 1)}, slc.EvalData(activations=x))
    with pytest.raises(ValueError, match="600 labels for 40 tokens"):
        slc.paper.paper_tables({"a": crosscoder}, slc.EvalData(activations=x, groups=GROUPS))
