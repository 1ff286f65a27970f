"""Saving changes the units of a crosscoder, never what it computes."""

import subprocess
import sys

import pytest
import torch
from sae_lens import SAE

import sae_lens_crosscoder as slc
from tests.crosscoders.conftest import as_lists, batchtopk_crosscoder, l1_crosscoder, stacked_batch, step
from tests.reference import crosscoder as ref

EXACT = dict(rtol=1e-10, atol=1e-12)


def trained(kind, x, scales=(1.0, 1.0), **fields):
    build = {"l1": l1_crosscoder, "batchtopk": batchtopk_crosscoder}[kind]
    crosscoder = build(**fields)
    crosscoder.input_scales.copy_(torch.tensor(scales))
    crosscoder.has_seen_data.fill_(True)
    for batch in (x, stacked_batch(seed=8)):  # two, so that the threshold ties with no score
        crosscoder.training_forward_pass(step(batch))
    return crosscoder


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
@pytest.mark.parametrize("score", ["sum", "l2", "max", "none"])
@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.25, 3.0)])
def test_both_folds_keep_the_mask_the_scores_and_the_reconstruction(tmp_path, kind, score, scales):
    x = stacked_batch(n=50)
    crosscoder = trained(kind, x, scales, score=score)
    crosscoder.save_inference_model(tmp_path)
    saved = SAE.load_from_disk(tmp_path)
    f = crosscoder.encode(x)  # with a batch-dependent mask in the BatchTopK case
    scores = (crosscoder.hook_sae_acts_pre(crosscoder.process_sae_in(x) @ crosscoder.W_enc + crosscoder.b_enc)).relu()
    scores = scores * crosscoder.score_norms()
    mask = scores > (crosscoder.topk_threshold if kind == "batchtopk" else 0)
    torch.testing.assert_close(saved.encode(x), scores * mask, **EXACT)
    raw = scores / crosscoder.score_norms() * mask
    torch.testing.assert_close(saved.decode(saved.encode(x)), crosscoder.decode(raw), **EXACT)
    if kind == "l1":
        torch.testing.assert_close(saved.decode(saved.encode(x)), crosscoder.decode(f), **EXACT)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (0.25, 3.0)])
def test_scaled_decoder_norms_sum_to_one_and_delta_norm_is_that_of_the_trained_space(tmp_path, scales):
    x = stacked_batch()
    crosscoder = trained("batchtopk", x, scales)
    crosscoder.save_inference_model(tmp_path)
    saved = slc.load(tmp_path)
    assert saved.activation_scales.tolist() == pytest.approx(scales)
    torch.testing.assert_close(saved.decoder_norms.sum(dim=-1), torch.ones(11, dtype=torch.float64), **EXACT)
    trained_norms = [[ref.norm(direction) for direction in decoder] for decoder in as_lists(crosscoder).decoders]
    torch.testing.assert_close(
        slc.delta_norm(saved.decoder_norms), slc.delta_norm(torch.tensor(trained_norms, dtype=torch.float64)), **EXACT
    )


def test_a_latent_that_writes_nothing_stays_silent_and_finite(tmp_path):
    x = stacked_batch()
    crosscoder = trained("l1", x)
    with torch.no_grad():
        crosscoder.W_dec[4] = 0
    expected = crosscoder.decode(crosscoder.encode(x))
    crosscoder.save_inference_model(tmp_path)
    saved = slc.load(tmp_path)
    assert saved.encode(x)[:, 4].abs().max() == 0
    torch.testing.assert_close(saved.decode(saved.encode(x)), expected, **EXACT)
    assert slc.delta_norm(saved.decoder_norms)[4].isnan()


def test_saving_leaves_the_training_crosscoder_as_it_was(tmp_path, any_crosscoder):
    any_crosscoder.training_forward_pass(step(stacked_batch()))
    before = {name: value.clone() for name, value in any_crosscoder.state_dict().items()}
    any_crosscoder.save_inference_model(tmp_path)
    for name, value in any_crosscoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_an_inference_crosscoder_compares_strictly_with_its_threshold(tmp_path):
    crosscoder = trained("batchtopk", stacked_batch())
    crosscoder.save_inference_model(tmp_path)
    saved = slc.load(tmp_path)
    x = stacked_batch(n=1)
    score = saved.encode(x)[0].max().item()
    assert score > 0
    saved.threshold.data.fill_(score)
    assert saved.encode(x).abs().max() == 0


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
def test_the_plain_jumprelu_export_computes_the_same_without_this_package(tmp_path, kind):
    x = stacked_batch()
    crosscoder = trained(kind, x, (0.5, 2.0))
    crosscoder.save_inference_model(tmp_path / "crosscoder")
    saved = slc.load(tmp_path / "crosscoder")
    saved.to_jumprelu_sae().save_model(tmp_path / "plain")
    torch.save({"x": x, "f": saved.encode(x), "h": saved.decode(saved.encode(x))}, tmp_path / "expected.pt")
    code = """
import sys, torch
from sae_lens import SAE
sae = SAE.load_from_disk(sys.argv[1] + "/plain")
expected = torch.load(sys.argv[1] + "/expected.pt")
assert "sae_lens_crosscoder" not in sys.modules
assert type(sae).__name__ == "JumpReLUSAE"
assert torch.equal(sae.encode(expected["x"]), expected["f"])
assert torch.equal(sae.decode(expected["f"]), expected["h"])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_saved_and_loaded_in_a_new_process_gives_equal_outputs(tmp_path):
    x = stacked_batch()
    crosscoder = trained("batchtopk", x, (0.5, 2.0))
    crosscoder.save_inference_model(tmp_path)
    saved = slc.load(tmp_path)
    torch.save({"x": x, "f": saved.encode(x)}, tmp_path / "expected.pt")
    code = """
import sys, torch
import sae_lens_crosscoder as slc
expected = torch.load(sys.argv[1] + "/expected.pt")
assert torch.equal(slc.load(sys.argv[1]).encode(expected["x"]), expected["f"])
"""
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_a_batchtopk_crosscoder_that_was_never_trained_cannot_be_saved_for_inference(tmp_path):
    with pytest.raises(ValueError, match="never estimated"):
        batchtopk_crosscoder().save_inference_model(tmp_path)


def test_saelens_joint_scale_folds_exactly(tmp_path):
    """SAELens multiplies the whole stack by one factor and hands it over at the end."""
    x = stacked_batch()
    crosscoder = batchtopk_crosscoder()
    crosscoder.training_forward_pass(step(4.0 * x))
    expected = crosscoder.decode(crosscoder.encode(4.0 * x)) / 4.0
    crosscoder.fold_activation_norm_scaling_factor(4.0)
    torch.testing.assert_close(crosscoder.decode(crosscoder.encode(x)), expected, **EXACT)
    crosscoder.save_inference_model(tmp_path)
    torch.testing.assert_close(
        slc.load(tmp_path).decoder_norms.sum(dim=-1), torch.ones(11, dtype=torch.float64), **EXACT
    )
