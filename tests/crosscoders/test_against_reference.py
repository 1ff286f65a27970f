"""Activations, selection, losses and gradients are those of the formulas written out as loops."""

import pytest
import torch

from tests.crosscoders.conftest import as_lists, batchtopk_crosscoder, dense, l1_crosscoder, stacked_batch, step
from tests.reference import crosscoder as ref

SCORES = ("sum", "l2", "max", "none")
TOLERANCE = dict(rtol=1e-10, atol=1e-10)
pytestmark = pytest.mark.usefixtures("each_training_step")


def close(actual, expected):
    torch.testing.assert_close(dense(actual), torch.tensor(expected, dtype=torch.float64), **TOLERANCE)


def reference_forward(crosscoder, x, k=None):
    """(tokens, positive pre-activations, what survives, s_j, reconstructions), all as lists."""
    w = as_lists(crosscoder)
    tokens = w.tokens(x)
    acts = [ref.relu(ref.pre_activations(h, w.encoders, w.b_enc)) for h in tokens]
    norms = [ref.score_norm(decoder, crosscoder.cfg.score) for decoder in w.decoders]
    f = acts if k is None else ref.select_batchtopk(acts, norms, k)
    return tokens, acts, f, norms, [ref.reconstruct(row, w.decoders, w.b_dec) for row in f]


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("loss", ["l2_norm", "mse"])
def test_l1_loss_is_the_reconstruction_term_plus_mu_times_the_summed_scores(score, loss):
    crosscoder, x = l1_crosscoder(score=score, reconstruction_loss=loss), stacked_batch()
    output = crosscoder.training_forward_pass(step(x, l1=0.3))
    tokens, _, f, norms, h_hat = reference_forward(crosscoder, x)
    close(output.feature_acts, f)
    close(output.sae_out, [[value for part in token for value in part] for token in h_hat])
    close(output.losses["reconstruction_loss"], ref.reconstruction_loss(tokens, h_hat, loss))
    close(output.losses["l1_loss"], 0.3 * ref.l1_penalty(f, norms))
    close(output.loss, ref.reconstruction_loss(tokens, h_hat, loss) + 0.3 * ref.l1_penalty(f, norms))


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("k", [0.4, 2.5, 11])
def test_batchtopk_keeps_the_largest_positive_scores_of_the_batch_as_raw_activations(score, k):
    crosscoder, x = batchtopk_crosscoder(score=score, k=k), stacked_batch()
    output = crosscoder.training_forward_pass(step(x))
    tokens, _, f, norms, h_hat = reference_forward(crosscoder, x, k)
    close(output.feature_acts, f)
    close(output.loss, ref.reconstruction_loss(tokens, h_hat, "l2_norm"))
    smallest = min(value * norms[j] for row in f for j, value in enumerate(row) if value > 0)
    close(crosscoder.topk_threshold, smallest)


def test_batchtopk_selects_fewer_when_fewer_scores_are_positive():
    crosscoder, x = batchtopk_crosscoder(k=11), stacked_batch()
    output = crosscoder.training_forward_pass(step(x))
    _, acts, *_ = reference_forward(crosscoder, x)
    n_positive = sum(value > 0 for row in acts for value in row)
    assert n_positive < 11 * len(x)
    assert int((dense(output.feature_acts) > 0).sum()) == n_positive


@pytest.mark.parametrize("n_dead", [1, 2, 6])
@pytest.mark.parametrize("score", SCORES)
def test_auxiliary_loss_is_the_share_of_residual_variance_left_by_the_best_dead_latents(n_dead, score):
    crosscoder, x = batchtopk_crosscoder(score=score, aux_loss_coefficient=0.25), stacked_batch()
    dead = torch.arange(11) < n_dead
    output = crosscoder.training_forward_pass(step(x, dead=dead))
    tokens, acts, _, norms, h_hat = reference_forward(crosscoder, x, k=2.5)
    k_aux = min(3 // 2, n_dead)  # half of ONE model's width
    expected = ref.auxiliary_loss(tokens, h_hat, acts, as_lists(crosscoder).decoders, norms, dead.tolist(), k_aux)
    close(output.losses["auxiliary_reconstruction_loss"], 0.25 * expected)
    close(output.loss, ref.reconstruction_loss(tokens, h_hat, "l2_norm") + 0.25 * expected)


def test_no_dead_latents_or_a_perfect_reconstruction_make_the_auxiliary_loss_zero():
    crosscoder, x = batchtopk_crosscoder(), stacked_batch()
    assert crosscoder.training_forward_pass(step(x)).losses["auxiliary_reconstruction_loss"] == 0
    perfect = crosscoder.calculate_topk_aux_loss(x, x, torch.ones(7, 11, dtype=torch.float64), torch.ones(11) > 0)
    assert perfect == 0
    one_token = batchtopk_crosscoder()  # a residual without variance
    one_token.training_forward_pass(step(stacked_batch(n=1), dead=torch.arange(11) < 3)).loss.backward()
    assert torch.isfinite(one_token.W_dec.grad).all()


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
@pytest.mark.parametrize("score", SCORES)
def test_gradients_are_those_of_the_loss_by_finite_differences(kind, score):
    """The selection is held fixed: it carries no gradient, and for BatchTopK none flows through s_j."""
    x = stacked_batch()
    dead = torch.arange(11) < 3
    build = {"l1": l1_crosscoder, "batchtopk": batchtopk_crosscoder}[kind]
    crosscoder = build(score=score)
    crosscoder.training_forward_pass(step(x, dead=dead)).loss.backward()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in crosscoder.named_parameters():
        weights = parameter.data
        for flat_index in torch.randint(weights.numel(), (6,), generator=generator):
            index = torch.unravel_index(flat_index, weights.shape)
            original = weights[index].item()
            values = []
            for sign in (1, -1):
                weights[index] = original + sign * 1e-6
                values.append(_loss_with_detached_residual(crosscoder, x, dead, original_at=(weights, index, original)))
            weights[index] = original
            numeric = (values[0] - values[1]) / 2e-6
            assert parameter.grad[index].item() == pytest.approx(numeric, rel=1e-5, abs=1e-7), name


def _loss_with_detached_residual(crosscoder, x, dead, original_at):
    """The loss as a function of a moved weight, with the auxiliary residual where the weight was before."""
    output = crosscoder.training_forward_pass(step(x, dead=dead))
    losses = {name: value.item() for name, value in output.losses.items()}
    if "auxiliary_reconstruction_loss" in losses:
        weights, index, original = original_at
        moved = weights[index].item()
        hidden_pre = crosscoder.process_sae_in(x) @ crosscoder.W_enc + crosscoder.b_enc
        weights[index] = original
        reference_out = crosscoder.training_forward_pass(step(x)).sae_out
        weights[index] = moved
        losses["auxiliary_reconstruction_loss"] = crosscoder.calculate_topk_aux_loss(
            x, reference_out, hidden_pre, dead
        ).item()
    return sum(losses.values())


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
def test_float32_agrees_with_the_reference_to_1e_5(kind):
    crosscoder = {"l1": l1_crosscoder, "batchtopk": batchtopk_crosscoder}[kind]()
    x = stacked_batch()
    exact = crosscoder.training_forward_pass(step(x, dead=torch.arange(11) < 3))
    single = crosscoder.float()
    single.dtype = torch.float32
    output = single.training_forward_pass(step(x.float(), dead=torch.arange(11) < 3))
    torch.testing.assert_close(output.loss.double(), exact.loss, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(dense(output.feature_acts).double(), dense(exact.feature_acts), rtol=1e-5, atol=1e-5)


def test_a_perfect_reconstruction_has_a_finite_gradient():
    """The unsquared norm has none at zero error; it must be 0, not nan."""
    crosscoder = l1_crosscoder()
    with torch.no_grad():
        crosscoder.W_dec.zero_()
        crosscoder.b_dec.zero_()
    crosscoder.training_forward_pass(step(torch.zeros(4, 7, dtype=torch.float64))).loss.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in crosscoder.parameters())
