"""Exclusive latents never touch the other model, have a budget of their own, and cost plain BatchTopK nothing."""

import copy

import pytest
import torch
from sae_lens import SAE, SAETrainer

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.partition import Partition
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.worlds import world_a
from tests.crosscoders.conftest import STEP, as_lists, batchtopk_crosscoder, dense, stacked_batch, step
from tests.reference import crosscoder as ref
from tests.reference import partition as partition_ref

N_BASE, N_CHAT, K, K_EXCLUSIVE = 2, 3, 3.5, 1.5
FIELDS = {"n_base_exclusive": N_BASE, "n_chat_exclusive": N_CHAT, "k": K, "k_exclusive": K_EXCLUSIVE}
both_steps = pytest.mark.usefixtures("each_training_step")


def confined(**fields):
    """Random weights that obey the partition."""
    crosscoder = batchtopk_crosscoder(**(FIELDS | fields))
    with torch.no_grad():
        for weights in (crosscoder.W_dec, crosscoder.W_enc.T):
            weights.copy_(torch.tensor(partition_ref.masked(weights.tolist(), N_BASE, N_CHAT, 3)))
    return crosscoder


def foreign(crosscoder, gradient=False):
    """Everything that must be 0."""
    weights = [w.grad if gradient else w for w in (crosscoder.W_dec, crosscoder.W_enc)]
    blocks = []
    for rows in (weights[0], weights[1].T):
        blocks += [rows[:N_BASE, 3:], rows[N_BASE : N_BASE + N_CHAT, :3]]
    return torch.cat([block.flatten() for block in blocks]).detach()


def world_trainer(steps=30, stream_steps=None, **fields):
    torch.manual_seed(0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=64, d_sae=32, k=4, **STEP, **fields)
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * 64, train_batch_size_samples=64, lr=1e-2, lr_warm_up_steps=2,
        dead_feature_window=3, log_frequency=5,
    )  # fmt: skip
    batches = shuffled_batches(world_a(seed=0).sample(1024, seed=1).activations, 64, seed=0)
    return slc.CrosscoderTrainer(trainer_cfg, slc.BatchTopKTrainingCrosscoder(cfg), batches)


@both_steps
def test_selection_and_reconstruction_are_those_of_two_budgets_written_as_loops():
    crosscoder, x = confined(), stacked_batch()
    output = crosscoder.training_forward_pass(step(x))
    w = as_lists(crosscoder)
    tokens = w.tokens(x)
    acts = [ref.relu(ref.pre_activations(h, w.encoders, w.b_enc)) for h in tokens]
    norms = [ref.score_norm(decoder, "sum") for decoder in w.decoders]
    kept = partition_ref.selected_pairs(acts, norms, N_BASE + N_CHAT, K, K_EXCLUSIVE)
    f = [[value if (i, j) in kept else 0.0 for j, value in enumerate(row)] for i, row in enumerate(acts)]
    expected = torch.tensor(f, dtype=torch.float64)
    torch.testing.assert_close(dense(output.feature_acts), expected, rtol=1e-10, atol=1e-10)
    h_hat = [ref.reconstruct(row, w.decoders, w.b_dec) for row in f]
    assert output.loss.item() == pytest.approx(ref.reconstruction_loss(tokens, h_hat, "l2_norm"))
    scores = expected * torch.tensor(norms)
    for name, part in (("exclusive_topk_threshold", slice(5)), ("topk_threshold", slice(5, None))):
        group = scores[:, part]
        assert getattr(crosscoder, name).item() == pytest.approx(group[group > 0].min().item())


@both_steps
@pytest.mark.parametrize("n_dead", [0, 8])
def test_the_gradient_is_exactly_zero_in_foreign_halves_and_elsewhere_that_of_the_loss(n_dead):
    crosscoder, x = confined(aux_loss_coefficient=0.25), stacked_batch()
    dead = torch.arange(11) < n_dead
    crosscoder.training_forward_pass(step(x, dead=dead)).loss.backward()
    assert (foreign(crosscoder, gradient=True) == 0).all()
    free = copy.deepcopy(crosscoder)
    free.trainable_rows = lambda rows, confinement: rows
    free.zero_grad()
    free.training_forward_pass(step(x, dead=dead)).loss.backward()
    assert (foreign(free, gradient=True) != 0).any()
    for name, parameter in crosscoder.named_parameters():
        plain = dict(free.named_parameters())[name].grad
        if name in ("W_dec", "W_enc"):
            rows = plain if name == "W_dec" else plain.T
            masked = torch.tensor(partition_ref.masked(rows.tolist(), N_BASE, N_CHAT, 3), dtype=torch.float64)
            plain = masked if name == "W_dec" else masked.T
        torch.testing.assert_close(parameter.grad, plain, rtol=1e-12, atol=1e-12)


@both_steps
@pytest.mark.parametrize("trainer_class", [slc.CrosscoderTrainer, SAETrainer])
def test_weights_in_foreign_halves_stay_exactly_zero_with_adam_and_revival(trainer_class):
    ours = world_trainer(n_base_exclusive=4, n_chat_exclusive=6, activation_scaling="none")
    trainer = ours
    if trainer_class is SAETrainer:
        trainer = SAETrainer(ours.cfg, ours.sae, ours.data_provider)
    before = {name: weights.clone() for name, weights in ours.sae.named_parameters()}
    trainer.fit()
    partition, layout = Partition(4, 6), ours.sae.layout
    for rows in (ours.sae.W_dec, ours.sae.W_enc.T):
        assert all((block == 0).all() for block in partition.foreign(rows, layout))
        assert (rows[:10] != 0).any(dim=1).all()
    assert all(not torch.equal(before[name], weights) for name, weights in ours.sae.named_parameters())
    for moments in trainer.optimizer.state.values():
        assert torch.isfinite(moments["exp_avg"]).all()


@both_steps
def test_each_budget_is_kept_exactly_also_while_k_is_annealed():
    crosscoder = confined(k_max=7, k_anneal_steps=4)
    x = stacked_batch(n=64)
    with torch.no_grad():
        crosscoder.b_enc += 20  # everything is positive, so that budgets are used up
    for n_steps, scale in ((0, 2.0), (2, 1.5), (4, 1.0), (9, 1.0)):
        acts = dense(crosscoder.training_forward_pass(step(x, n_steps=n_steps)).feature_acts)
        assert int((acts[:, :5] > 0).sum()) == int(scale * K_EXCLUSIVE * 64)
        assert int((acts[:, 5:] > 0).sum()) == int(scale * (K - K_EXCLUSIVE) * 64)


def test_a_quarter_of_k_is_the_default_budget_of_exclusive_latents():
    crosscoder = confined(k_exclusive=None, k=4)
    assert crosscoder.cfg.budgets(4, n_tokens=10) == (10, 30)


@both_steps
def test_without_exclusive_latents_training_is_plain_batchtopk_to_the_bit():
    plain, explicit = world_trainer(), world_trainer(n_base_exclusive=0, n_chat_exclusive=0)
    plain.fit()
    explicit.fit()
    state = explicit.sae.state_dict()
    assert state.keys() == plain.sae.state_dict().keys()
    assert "exclusive_topk_threshold" not in state
    for name, weights in plain.sae.state_dict().items():
        assert torch.equal(state[name], weights), name


@pytest.mark.parametrize("screening", ["float32", "bfloat16"])
def test_the_sparse_step_trains_the_crosscoder_of_the_dense_step(screening, monkeypatch):
    states = []
    for training_step in ("sparse", "dense"):
        monkeypatch.setitem(STEP, "training_step", training_step)
        trainer = world_trainer(n_base_exclusive=4, n_chat_exclusive=6, screening=screening, dtype="float64")
        trainer.fit()
        states.append(trainer.sae.state_dict())
    for name, expected in states[1].items():
        torch.testing.assert_close(states[0][name], expected, rtol=1e-6, atol=1e-8, msg=name)


def test_the_saved_form_has_both_thresholds_and_selects_what_training_scores_say(tmp_path):
    x = stacked_batch(n=50)
    crosscoder = confined()
    for batch in (x, stacked_batch(seed=8)):
        crosscoder.training_forward_pass(step(batch))
    crosscoder.save_inference_model(tmp_path)
    saved = slc.load(tmp_path)
    scores = (x @ crosscoder.W_enc + crosscoder.b_enc).relu() * crosscoder.score_norms()
    thresholds = torch.where(torch.arange(11) < 5, crosscoder.exclusive_topk_threshold, crosscoder.topk_threshold)
    torch.testing.assert_close(saved.encode(x), scores * (scores > thresholds), rtol=1e-10, atol=1e-12)
    assert saved.cfg.partition == Partition(N_BASE, N_CHAT)
    assert saved.cfg.metadata.training_architecture_details["k_exclusive"] == K_EXCLUSIVE
    assert slc.delta_norm(saved.decoder_norms)[:5].tolist() == [0, 0, 1, 1, 1]
    plain = saved.to_jumprelu_sae()
    plain.save_model(tmp_path / "plain")
    for other in (plain, SAE.load_from_disk(tmp_path / "plain"), SAE.load_from_disk(tmp_path)):
        assert torch.equal(other.encode(x), saved.encode(x))


def test_exclusive_latents_that_never_fired_are_saved_with_a_warning(tmp_path):
    crosscoder = confined()
    with torch.no_grad():
        crosscoder.b_enc[:5] = -1e6
    crosscoder.training_forward_pass(step(stacked_batch()))
    with pytest.warns(UserWarning, match="No exclusive latent was ever selected"):
        crosscoder.save_inference_model(tmp_path)
    assert slc.load(tmp_path).threshold.unique().tolist() == pytest.approx([crosscoder.topk_threshold.item()])


def test_weights_that_break_the_partition_are_refused(tmp_path):
    crosscoder = confined()
    crosscoder.training_forward_pass(step(stacked_batch()))
    plain = batchtopk_crosscoder(k=K)
    plain.training_forward_pass(step(stacked_batch()))
    crosscoder.save_model(tmp_path / "confined")
    confined().load_weights_from_checkpoint(tmp_path / "confined")
    with torch.no_grad():
        crosscoder.W_enc[6, 0] = 1e-30
    crosscoder.save_model(tmp_path / "training")
    with pytest.raises(ValueError, match="W_enc is not 0 in the other model's half of exclusive latents"):
        confined().load_weights_from_checkpoint(tmp_path / "training")
    crosscoder.save_inference_model(tmp_path / "inference")
    with pytest.raises(ValueError, match="W_enc is not 0"):
        slc.load(tmp_path / "inference")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_chat_exclusive": -1}, "n_chat_exclusive=-1 must not be negative"),
        ({"n_base_exclusive": 6, "n_chat_exclusive": 5}, "must leave shared latents among d_sae=11"),
        ({"n_chat_exclusive": 2, "k_exclusive": 2.5}, "k_exclusive=2.5 must be above 0 and below k=2.5"),
        ({"n_chat_exclusive": 2, "k_exclusive": 0}, "k_exclusive=0 must be above 0"),
        ({"k_exclusive": 1}, "k_exclusive=1 is the budget of exclusive latents"),
        ({"n_chat_exclusive": 2, "d_models": (3, 4, 5)}, "need two models"),
    ],
)
def test_a_partition_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        batchtopk_crosscoder(**fields)


def test_a_shard_knows_which_of_its_latents_are_exclusive():
    whole = Partition(3, 9)
    shards = [whole.of_rows(8 * i, 8) for i in range(4)]
    assert shards == [Partition(3, 5), Partition(0, 4), Partition(0, 0), Partition(0, 0)]
