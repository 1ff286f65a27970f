"""How training starts, how k falls and how the inference threshold is estimated."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.batchtopk import NothingSelectedError
from sae_lens_crosscoder.crosscoders.initialisation import geometric_median
from sae_lens_crosscoder.stacking import StackedLayout
from tests.crosscoders.conftest import batchtopk_crosscoder, stacked_batch, step


def fresh(cls=slc.BatchTopKCrosscoderTrainingConfig, sae=slc.BatchTopKTrainingCrosscoder, **fields):
    fields = ({"k": 3} if cls is slc.BatchTopKCrosscoderTrainingConfig else {}) | fields
    return sae(cls(d_sae=40, dtype="float64", **fields))


def test_paired_initialisation_gives_both_models_one_direction_and_the_encoder_its_transpose():
    crosscoder = fresh(d_model=6, decoder_init_norm=0.7)
    base, chat = crosscoder.decoders
    assert torch.equal(base, chat)
    torch.testing.assert_close(base.norm(dim=-1), torch.full((40,), 0.7, dtype=torch.float64))
    assert torch.equal(crosscoder.W_enc, crosscoder.W_dec.T)
    assert crosscoder.b_enc.abs().max() == 0


@pytest.mark.parametrize("fields", [{"d_model": 6, "initialisation": "independent"}, {"d_models": (6, 4)}])
def test_independent_models_start_apart_but_equally_long(fields):
    crosscoder = fresh(**fields, decoder_init_norm=0.7)
    norms = crosscoder.layout.norms(crosscoder.W_dec)
    torch.testing.assert_close(norms, torch.full((40, 2), 0.7, dtype=torch.float64))
    assert not torch.equal(*(decoder[:, :4] for decoder in crosscoder.decoders))


def test_initial_directions_have_no_preferred_axis():
    crosscoder = slc.BatchTopKTrainingCrosscoder(slc.BatchTopKCrosscoderTrainingConfig(d_model=4, d_sae=20_000, k=3))
    covariance = crosscoder.decoders[0].T @ crosscoder.decoders[0] / 20_000
    torch.testing.assert_close(covariance, torch.eye(4) / 4, atol=0.01, rtol=0)


def test_the_same_seed_gives_the_same_weights():
    torch.manual_seed(5)
    first = fresh(d_model=6)
    torch.manual_seed(5)
    assert torch.equal(first.W_dec, fresh(d_model=6).W_dec)


def test_decoder_biases_start_at_each_models_geometric_median_of_the_first_batch_only():
    crosscoder, x = fresh(d_models=(3, 4), k=3), stacked_batch(n=60)
    x[:3] *= 1000  # a few enormous activations, which a mean would follow
    crosscoder.training_forward_pass(step(x, dead=torch.zeros(40) > 0))
    for bias, part in zip(crosscoder.decoder_biases, x.split([3, 4], dim=-1), strict=True):
        distance = (part - bias).norm(dim=-1).sum()
        for direction in torch.eye(len(bias), dtype=torch.float64):
            for offset in (0.02, -0.02):
                assert (part - bias - offset * direction).norm(dim=-1).sum() > distance - 1e-6
    before = crosscoder.b_dec.clone()
    crosscoder.training_forward_pass(step(-x, dead=torch.zeros(40) > 0))
    assert torch.equal(crosscoder.b_dec, before)


def test_l1_starts_with_zero_biases():
    crosscoder = fresh(slc.L1CrosscoderTrainingConfig, slc.L1TrainingCrosscoder, d_model=4)
    crosscoder.training_forward_pass(step(stacked_batch(d_in=8) + 5))
    assert crosscoder.b_dec.abs().max() == 0


def test_geometric_median_of_one_point_repeated_is_that_point():
    torch.testing.assert_close(geometric_median(torch.ones(5, 3)), torch.ones(3))


def test_per_model_scales_bring_each_model_to_mean_norm_sqrt_d_and_survive_a_checkpoint(tmp_path):
    crosscoder, x = fresh(d_models=(3, 4), activation_scaling="per_model"), stacked_batch(n=200)
    x[:, 3:] *= 50
    crosscoder.training_forward_pass(step(x, dead=torch.zeros(40) > 0))
    scaled = crosscoder.run_time_activation_norm_fn_in(x)
    norms = crosscoder.layout.norms(scaled).mean(dim=0)
    torch.testing.assert_close(norms, torch.tensor([3.0, 4.0], dtype=torch.float64).sqrt())
    crosscoder.save_model(tmp_path)
    again = fresh(d_models=(3, 4), activation_scaling="per_model")
    again.load_weights_from_checkpoint(tmp_path)
    again.training_forward_pass(step(7 * x, dead=torch.zeros(40) > 0))
    assert torch.equal(again.input_scales, crosscoder.input_scales)


@pytest.mark.parametrize(("gain", "scales"), [(1.2, False), (1 / 1.2, False), (1.3, True), (1 / 1.3, True)])
def test_auto_scales_if_a_model_is_louder_by_more_than_a_quarter_and_decides_once(gain, scales, tmp_path):
    x = stacked_batch(n=200)
    layout = StackedLayout((3, 4))
    unit = layout.norms(x).mean(dim=0) / torch.tensor([3.0, 4.0], dtype=torch.float64).sqrt()
    x = x / layout.expand(unit)
    x[:, 3:] *= gain
    crosscoder = fresh(d_models=(3, 4), activation_scaling="auto")
    assert crosscoder.wants_activation_scales
    crosscoder.training_forward_pass(step(x, dead=torch.zeros(40) > 0))
    assert not crosscoder.wants_activation_scales
    expected = torch.tensor([1.0, 1 / gain if scales else 1.0], dtype=torch.float64)
    torch.testing.assert_close(crosscoder.input_scales, expected)
    crosscoder.training_forward_pass(step(9 * x, dead=torch.zeros(40) > 0))
    torch.testing.assert_close(crosscoder.input_scales, expected)
    crosscoder.save_inference_model(tmp_path)
    assert (slc.load(tmp_path).cfg.activation_scales is None) != scales


def test_with_per_model_scales_a_louder_model_changes_nothing():
    """The same data with chat 50 times as loud gives the same loss, activations and selection."""
    x = stacked_batch(n=200)
    loud = x.clone()
    loud[:, 3:] *= 50
    outputs = []
    for data in (x, loud):
        torch.manual_seed(1)
        crosscoder = fresh(d_models=(3, 4), activation_scaling="per_model")
        outputs.append(crosscoder.training_forward_pass(step(data, dead=torch.zeros(40) > 0)))
    torch.testing.assert_close(outputs[0].feature_acts, outputs[1].feature_acts)
    torch.testing.assert_close(outputs[0].loss, outputs[1].loss)


def test_k_falls_linearly_and_then_is_exactly_k():
    crosscoder = batchtopk_crosscoder(k=2, k_max=10, k_anneal_steps=4)
    assert [crosscoder.k_at(t) for t in (0, 1, 2, 3, 4, 5, 6, 1000)] == [10, 8, 6, 4, 2, 2, 2, 2]
    wide = crosscoder.training_forward_pass(step(stacked_batch(), n_steps=0)).feature_acts.to_dense()
    narrow = crosscoder.training_forward_pass(step(stacked_batch(), n_steps=4)).feature_acts.to_dense()
    assert (wide > 0).sum() > (narrow > 0).sum() == 2 * 7


def smallest_scores(crosscoder, seeds, n_steps):
    """Feed batches, and return what each batch's smallest selected score was."""
    samples = []
    for t, seed in zip(n_steps, seeds, strict=True):
        output = crosscoder.training_forward_pass(step(stacked_batch(seed=seed), n_steps=t))
        scores = (output.feature_acts.to_dense() * crosscoder.score_norms()).detach()
        samples.append(scores[scores > 0].min().item())
    return samples


def test_the_tracking_threshold_starts_at_the_first_sample_and_forgets_at_the_stated_rate():
    crosscoder = batchtopk_crosscoder(topk_threshold_lr=0.2)
    samples = smallest_scores(crosscoder, range(200), range(200))
    expected = samples[0]
    for n, sample in enumerate(samples):
        rate = max(0.2, 1 / (1 + n / 30))
        expected = (1 - rate) * expected + rate * sample
    assert crosscoder.topk_threshold.item() == pytest.approx(expected)


def test_the_authors_threshold_starts_anew_after_step_1000():
    crosscoder = batchtopk_crosscoder(threshold_rule="authors", topk_threshold_lr=0.1)
    samples = smallest_scores(crosscoder, range(5), (999, 1000, 1001, 1002, 1003))
    expected = samples[2]
    for sample in samples[3:]:
        expected = 0.9 * expected + 0.1 * sample
    assert crosscoder.topk_threshold.item() == pytest.approx(expected)


def test_a_short_run_under_the_authors_rule_is_saved_with_a_warning(tmp_path):
    crosscoder = batchtopk_crosscoder(threshold_rule="authors")
    crosscoder.training_forward_pass(step(stacked_batch()))
    with pytest.warns(UserWarning, match="training was shorter"):
        crosscoder.save_inference_model(tmp_path)


def test_a_batch_with_nothing_selected_is_refused_and_leaves_the_threshold_alone():
    crosscoder = batchtopk_crosscoder()
    crosscoder.training_forward_pass(step(stacked_batch()))
    before = crosscoder.topk_threshold.clone()
    with torch.no_grad():
        crosscoder.b_enc.fill_(-1e6)
    with pytest.raises(NothingSelectedError, match="Step 0 selected no latent"):
        crosscoder.training_forward_pass(step(stacked_batch()))
    assert torch.equal(crosscoder.topk_threshold, before)


def test_encoding_for_evaluation_moves_neither_threshold_nor_weights():
    crosscoder = batchtopk_crosscoder()
    crosscoder.training_forward_pass(step(stacked_batch()))
    before = {name: value.clone() for name, value in crosscoder.state_dict().items()}
    crosscoder.eval()
    crosscoder.decode(crosscoder.encode(stacked_batch(seed=9)))
    assert all(torch.equal(value, before[name]) for name, value in crosscoder.state_dict().items())
