"""Where the L1 crosscoder's artifacts come from, on problems small enough to solve on paper."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from tests.crosscoders.conftest import step

D_MODEL = 8


def one_concept(rho, n=4096):
    """h^base = rho a u and h^chat = a u for one direction u and magnitudes a >= 0."""
    generator = torch.Generator().manual_seed(2)
    u = torch.nn.functional.normalize(torch.randn(D_MODEL, generator=generator, dtype=torch.float64), dim=0)
    a = (1 + 0.25 * torch.randn(n, generator=generator, dtype=torch.float64)).clamp(min=0.1)
    a *= torch.rand(n, generator=generator) < 0.5
    return torch.cat([rho * a[:, None] * u, a[:, None] * u], dim=-1), a, u


def trained_on_one_concept(rho, mu, score="sum", loss="mse", noise=0.0):
    """A crosscoder of one latent, trained to convergence with frozen biases, its activations and their magnitudes."""
    activations, a, u = one_concept(rho)
    activations = activations + noise * torch.randn(activations.shape, generator=torch.Generator().manual_seed(3))
    cfg = slc.L1CrosscoderTrainingConfig(
        d_model=D_MODEL, d_sae=1, l1_coefficient=mu, reconstruction_loss=loss, score=score, dtype="float64"
    )
    crosscoder = slc.L1TrainingCrosscoder(cfg)
    with torch.no_grad():  # paired, and on the concept's side, so that the latent is alive
        crosscoder.W_dec.copy_(0.3 * torch.cat([u, u])[None])
        crosscoder.W_enc.copy_(crosscoder.W_dec.T)
    for bias in (crosscoder.b_enc, crosscoder.b_dec):
        bias.requires_grad_(False)
    steps = 1500
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * 1024,
        train_batch_size_samples=1024,
        lr=1e-2,
        lr_warm_up_steps=0,
        lr_decay_steps=steps // 2,
    )
    slc.CrosscoderTrainer(trainer_cfg, crosscoder, shuffled_batches(activations, 1024, seed=0)).fit()
    return crosscoder, activations, a


def trained_norm_ratio(rho, mu, score="sum"):
    """n_base / n_chat after training on squared error, and lambda."""
    crosscoder, _, a = trained_on_one_concept(rho, mu, score)
    base, chat = crosscoder.layout.norms(crosscoder.W_dec)[0].tolist()
    shrinkage = mu * a.mean().item() / (2 * a.square().mean().item())
    return base / chat, shrinkage


@pytest.mark.parametrize(("rho", "mu"), [(0.6, 0.2), (0.35, 0.4), (0.15, 0.5)])
def test_complete_shrinkage_an_l1_crosscoder_subtracts_the_same_amount_from_both_norms(rho, mu):
    """n_base / n_chat = max(rho - lambda, 0) / (1 - lambda), lambda = mu E[a] / (2 E[a^2])."""
    ratio, shrinkage = trained_norm_ratio(rho, mu)
    assert ratio == pytest.approx(max(rho - shrinkage, 0) / (1 - shrinkage), abs=0.01)


@pytest.mark.parametrize(
    ("loss", "mu", "rho", "shrunk"),
    [("mse", 0.4, 0.15, True), ("mse", 0.4, 0.25, False), ("l2_norm", 0.1, 0.04, True), ("l2_norm", 0.1, 0.2, False)],
)
def test_rho_limit_is_the_strength_up_to_which_a_base_norm_is_shrunk_to_zero(loss, mu, rho, shrunk, tmp_path):
    crosscoder, activations, a = trained_on_one_concept(rho, mu, loss=loss, noise=0.2)
    crosscoder.save_inference_model(tmp_path)
    inference = slc.load(tmp_path)
    limit = slc.diagnose(inference, slc.EvalData(activations=[activations]), free_directions="all").latents.rho_limit[0]
    assert (rho < limit) == shrunk
    assert (inference.decoder_norms[0, 0].item() < 0.01) == shrunk
    if loss == "mse":  # then it is lambda
        assert limit == pytest.approx(mu * a.mean().item() / (2 * a.square().mean().item()), rel=0.05)


def test_under_the_stacked_norm_nothing_is_shrunk_relative_to_the_other_model():
    ratio, _ = trained_norm_ratio(0.35, 0.4, score="l2")
    assert ratio == pytest.approx(0.35, abs=0.01)


def costs(build, score, **fields):
    """The penalty of one shared latent, and of the pair of latents that splits it between the models."""
    u = torch.nn.functional.normalize(torch.randn(D_MODEL, dtype=torch.float64), dim=0)
    zero = torch.zeros_like(u)
    x = torch.cat([2.0 * u, 2.0 * u])[None].repeat(16, 1)
    outputs = []
    for rows in ([torch.cat([u, u])], [torch.cat([u, zero]), torch.cat([zero, u])]):
        crosscoder = build(len(rows), score, **fields)
        with torch.no_grad():
            crosscoder.W_dec.copy_(torch.stack(rows))
            crosscoder.W_enc.copy_(torch.cat([u, u])[:, None].repeat(1, len(rows)) / 2)
        crosscoder.training_forward_pass(step(x, l1=1.0, dead=torch.zeros(len(rows)) > 0))
        outputs.append(crosscoder.training_forward_pass(step(x, l1=1.0, dead=torch.zeros(len(rows)) > 0)))
        torch.testing.assert_close(outputs[-1].sae_out, x)
    return outputs


def build_l1(d_sae, score):
    cfg = slc.L1CrosscoderTrainingConfig(d_model=D_MODEL, d_sae=d_sae, score=score, dtype="float64")
    return slc.L1TrainingCrosscoder(cfg)


@pytest.mark.parametrize(("score", "ratio"), [("sum", 1.0), ("l2", 2**0.5)])
def test_latent_decoupling_is_free_for_l1_and_only_the_stacked_norm_charges_for_it(score, ratio):
    shared, split = costs(build_l1, score)
    assert (split.losses["l1_loss"] / shared.losses["l1_loss"]).item() == pytest.approx(ratio, rel=1e-6)


def test_latent_decoupling_costs_batchtopk_a_second_slot():
    def build(d_sae, score):
        cfg = slc.BatchTopKCrosscoderTrainingConfig(
            d_model=D_MODEL, d_sae=d_sae, k=d_sae, score=score, decoder_bias_init="zeros", dtype="float64"
        )
        return slc.BatchTopKTrainingCrosscoder(cfg)

    shared, split = costs(build, "sum")
    assert (shared.feature_acts.to_dense() > 0).sum(dim=-1).unique().tolist() == [1]
    assert (split.feature_acts.to_dense() > 0).sum(dim=-1).unique().tolist() == [2]
