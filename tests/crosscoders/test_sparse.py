"""The sparse training step is the dense one: the same pairs, the same gradients, and in the end the same crosscoder."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.sparse_step.codes import DenseCode, SparseCode
from sae_lens_crosscoder.crosscoders.sparse_step.screening import Screening, pairs_above
from sae_lens_crosscoder.crosscoders.training import reconstruction_loss
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.worlds import world_a
from tests.crosscoders.problems import D_IN, D_SAE, B, draw, problem


def test_nothing_positive_selects_nothing_and_leaves_zero_gradients():
    x, W_enc, b_enc, norms = problem()
    pairs, values = Screening().select(x, W_enc, b_enc - 1000, norms, 25)
    assert len(pairs) == 0
    W_enc.requires_grad_()
    W_dec = draw(D_SAE, D_IN).requires_grad_()
    code = SparseCode(x, W_enc, b_enc, pairs, values)
    decoded = code.decode(W_dec)
    assert not decoded.any()
    decoded.sum().backward()
    assert not W_enc.grad.any()
    assert not W_dec.grad.any()
    assert code.feature_acts().to_dense().shape == (B, D_SAE)


def test_a_sparse_code_is_the_dense_one_gradients_included():
    x, W_enc, b_enc, norms = problem()
    bounds = draw(D_SAE, seed=9).abs()
    gradients, outputs = [], []
    for kind in (DenseCode, SparseCode):
        weights = [w.clone().requires_grad_() for w in (W_enc, b_enc, draw(D_SAE, D_IN, seed=8), norms)]
        W, b, W_dec, s = weights
        if kind is DenseCode:
            pre = x @ W + b
            code = DenseCode(pre * (pre.detach() > bounds), pre)
        else:
            code = SparseCode(x, W, b, *pairs_above(x, W, b, bounds))
        decoded = code.decode(W_dec)
        few = code.pre_of(torch.tensor([2, 7, 30]))
        (decoded.square().sum() + 3 * code.mean_score(s) + few.square().sum()).backward()
        gradients.append([w.grad for w in weights])
        acts = code.feature_acts()
        acts = acts.to_dense() if acts.is_sparse else acts
        outputs.append([decoded, few, code.mean_score(s), code.scores(s).sort().values, acts])
    for dense, fast in zip(*gradients, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-10)
    for dense, fast in zip(*outputs, strict=True):
        torch.testing.assert_close(fast, dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["l2_norm", "mse"])
@pytest.mark.parametrize("d_models", [(D_IN // 2, D_IN // 2), (1, D_IN - 1)])
def test_a_reconstruction_in_closed_form_has_autograds_loss_and_gradients(kind, d_models):
    """Also where a model's error is 0, and where other losses share the weights."""
    layout = StackedLayout(d_models)
    x, W_enc, b_enc, _ = problem()
    target = draw(B, D_IN, seed=11)
    found = pairs_above(x, W_enc, b_enc, draw(D_SAE, seed=9).abs())
    results = []
    for closed in (False, True):
        weights = [w.clone().requires_grad_() for w in (W_enc, b_enc, draw(D_SAE, D_IN, seed=8), draw(D_IN, seed=10))]
        W, b, W_dec, b_dec = weights
        code = SparseCode(x, W, b, *found)
        wanted = target.clone()
        wanted[0, : d_models[0]] = (code.decode(W_dec) + b_dec)[0, : d_models[0]].detach()
        if closed:
            decoded, loss = code.reconstruct(W_dec, b_dec, wanted, layout, kind)
            assert not decoded.requires_grad
        else:
            decoded = code.decode(W_dec) + b_dec
            loss = reconstruction_loss(wanted - decoded, layout, kind)
        (3 * loss + code.mean_score(draw(D_SAE, seed=7)) + W_dec.square().sum()).backward()
        results.append([decoded, loss, *(w.grad for w in weights)])
    for expected, ours in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def test_values_have_a_gradient_wherever_they_were_first_asked_for():
    x, W_enc, b_enc, norms = problem()
    W = W_enc.clone().requires_grad_()
    code = SparseCode(x, W, b_enc, *pairs_above(x, W_enc, b_enc, torch.zeros(D_SAE)))
    with torch.no_grad():
        scores, values = code.scores(norms), code.values
    assert not scores.requires_grad
    values.sum().backward()
    assert W.grad.abs().sum() > 0


KINDS = {
    "l1": (slc.L1TrainingCrosscoder, slc.L1CrosscoderTrainingConfig, {"l1_coefficient": 0.1, "decoder_init_norm": 0.3}),
    "batchtopk": (
        slc.BatchTopKTrainingCrosscoder,
        slc.BatchTopKCrosscoderTrainingConfig,
        {"k": 4.5, "k_max": 20, "k_anneal_steps": 50},
    ),
}


@pytest.mark.parametrize("screening", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_training_with_either_step_gives_the_same_crosscoder(kind, screening):
    """With latents dying and being revived, gradients clipped, k annealed, and activations scaled on the way."""
    crosscoder_class, config_class, fields = KINDS[kind]
    world = world_a(seed=0, d_models=(16, 16), gains=(1.0, 3.0))
    pool = world.sample(8000, seed=1).activations.double()
    trained = {}
    for step in ("sparse", "dense"):
        torch.manual_seed(0)
        cfg = config_class(
            d_model=16, d_sae=64, dtype="float64", activation_scaling="per_model", gradient_clip_norm=0.5,
            training_step=step, screening=screening, **fields,
        )  # fmt: skip
        crosscoder = crosscoder_class(cfg)
        trainer_cfg = slc.CrosscoderTrainerConfig(
            total_training_samples=250 * 256,
            train_batch_size_samples=256,
            lr=5e-3,
            lr_warm_up_steps=10,
            dead_feature_window=5,
            log_frequency=50,
            n_batches_for_norm_estimate=5,
        )
        trainer = slc.CrosscoderTrainer(trainer_cfg, crosscoder, shuffled_batches(pool, 256, seed=0))
        trainer.fit()
        trained[step] = (crosscoder.state_dict(), trainer.history)
    for name, dense in trained["dense"][0].items():
        torch.testing.assert_close(trained["sparse"][0][name], dense, rtol=1e-6, atol=1e-8)
    history = trained["dense"][1]
    if kind == "batchtopk":
        assert history.n_dead.max() > 0
    for column in history:
        assert trained["sparse"][1][column].to_numpy() == pytest.approx(history[column].to_numpy(), rel=1e-6, abs=1e-8)
