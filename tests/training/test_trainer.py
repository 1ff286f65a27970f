"""The trainer: what it computes per step, what it reports, and how it stops."""

import json

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.worlds import world_a
from tests.reference.crosscoder import norm
from tests.reference.variance import variance_explained_of_difference

BATCH = 64


@pytest.fixture(scope="module")
def activations():
    return world_a(seed=0).sample(2048, seed=1).activations


def crosscoder(kind="batchtopk", seed=0, **fields):
    torch.manual_seed(seed)
    if kind == "l1":
        return slc.L1TrainingCrosscoder(slc.L1CrosscoderTrainingConfig(d_model=64, d_sae=32, **fields))
    fields = {"k": 4} | fields
    return slc.BatchTopKTrainingCrosscoder(slc.BatchTopKCrosscoderTrainingConfig(d_model=64, d_sae=32, **fields))


def config(steps=6, **fields):
    fields = {"lr": 1e-3, "lr_warm_up_steps": 0, "log_frequency": 2} | fields
    return slc.CrosscoderTrainerConfig(total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, **fields)


def trainer(activations, kind="batchtopk", cfg=None, sae=None, stream=None, **fields):
    sae = crosscoder(kind, **fields) if sae is None else sae
    stream = shuffled_batches(activations, BATCH, seed=0) if stream is None else stream
    return slc.CrosscoderTrainer(cfg or config(), sae, stream)


def weights(sae):
    return {name: value.clone() for name, value in sae.state_dict().items()}


@pytest.mark.parametrize("kind", ["l1", "batchtopk"])
def test_the_same_seed_gives_the_same_weights(activations, kind):
    first, second = (weights(trainer(activations, kind).fit()) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_crosscoders_on_one_stream_learn_what_each_would_learn_alone(activations):
    alone = {kind: weights(trainer(activations, kind).fit()) for kind in ("l1", "batchtopk")}
    together = {kind: trainer(activations, kind) for kind in ("l1", "batchtopk")}
    slc.training.train_together(together, shuffled_batches(activations, BATCH, seed=0))
    for kind, expected in alone.items():
        assert all(torch.equal(value, expected[name]) for name, value in weights(together[kind].sae).items())


def test_batches_are_made_once_for_all_crosscoders(activations):
    made = []

    def stream():
        for batch in shuffled_batches(activations, BATCH, seed=0):
            made.append(len(batch))
            yield batch

    slc.training.train_together({k: trainer(activations, k) for k in ("l1", "batchtopk")}, stream())
    assert made == [BATCH] * 6


def test_gradients_are_clipped_at_the_crosscoders_own_norm(activations):
    """With plain SGD, the step's length is lr times the clipped gradient norm."""
    for limit, expected in ((1.0, 1.0), (None, None)):
        run = trainer(1000 * activations, cfg=config(steps=1), gradient_clip_norm=limit)
        run.optimizer = torch.optim.SGD(run.sae.parameters(), lr=1.0, fused=True)
        run.sae.start_from(1000 * activations[:BATCH])
        before = [parameter.detach().clone() for parameter in run.sae.parameters()]
        run.step(1000 * activations[:BATCH])
        moved = [(a - b).flatten() for a, b in zip(run.sae.parameters(), before, strict=True)]
        length = torch.cat(moved).double().norm().item()
        if expected is None:
            assert length > 2
        else:
            assert length == pytest.approx(expected, rel=1e-4)


def test_history_and_file_hold_the_same_rows_and_undefined_is_null(activations, tmp_path):
    path = tmp_path / "run" / "metrics.jsonl"
    run = trainer(activations, cfg=config(metrics_path=str(path)))
    run.fit()
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    pd.testing.assert_frame_equal(pd.DataFrame(rows), run.history, check_dtype=False)
    assert run.history.step.tolist() == [2, 4, 6]
    assert run.history.n_training_tokens.tolist() == [128, 256, 384]
    run.metrics_log.write({"fve_base": float("nan")})
    assert json.loads(path.read_text().splitlines()[-1]) == {"fve_base": None}


def test_metrics_are_those_of_the_batch(activations):
    run = trainer(activations, cfg=config(steps=1, log_frequency=1))
    run.fit()
    row = run.history.iloc[0]
    batch = next(shuffled_batches(activations, BATCH, seed=0))
    again = crosscoder()
    again.start_from(batch)
    f = again.encode(batch)
    errors = (batch - again.decode(f)).detach().tolist()
    for m, name in enumerate(("base", "chat")):
        cut = slice(64 * m, 64 * (m + 1))
        residual = [error[cut] for error in errors]
        target = [h[cut] for h in batch.tolist()]
        assert row[f"fve_{name}"] == pytest.approx(1 - _variance(residual) / _variance(target), rel=1e-4)
    difference = variance_explained_of_difference(batch.tolist(), again.decode(f).tolist(), 64)
    assert row.fve_difference == pytest.approx(difference, rel=1e-4)
    per_model = [sum(norm(error[64 * m : 64 * (m + 1)]) for error in errors) / BATCH for m in (0, 1)]
    assert row.reconstruction_loss == pytest.approx(sum(per_model) / 2, rel=1e-5)
    assert row.l0 == (f > 0).sum().item() / BATCH
    assert row.topk_threshold > 0


def _variance(rows):
    n = len(rows)
    return sum(sum(x * x for x in column) / n - (sum(column) / n) ** 2 for column in zip(*rows, strict=True))


def test_dead_counts_steps_without_being_selected(activations):
    sae = crosscoder()
    with torch.no_grad():
        sae.b_enc[:5] = -1e6
    run = trainer(activations, cfg=config(steps=6, dead_feature_window=3, lr=1e-9), sae=sae)
    run.fit()
    assert run.n_forward_passes_since_fired[:5].tolist() == [6] * 5
    assert run.dead_neurons[:5].all()
    assert run.history.n_dead.iloc[0] <= run.history.n_dead.iloc[-1]
    selected = run.n_forward_passes_since_fired == 0
    assert selected.any()
    assert not run.dead_neurons[selected].any()


@pytest.mark.parametrize(("value", "model", "column"), [(float("nan"), "chat", 70), (float("inf"), "base", 3)])
def test_activations_that_are_not_finite_stop_training_with_step_model_and_checkpoint(
    activations, tmp_path, value, model, column
):
    def stream():
        for t, batch in enumerate(shuffled_batches(activations, BATCH, seed=0)):
            if t == 3:
                batch = batch.clone()
                batch[[1, 5], column] = value
            yield batch

    run = trainer(activations, cfg=config(checkpoint_path=str(tmp_path)), stream=stream())
    reference = trainer(activations, cfg=config(steps=3))
    reference.fit()
    message = rf"The {model} model's activations .* on 2 of 64 tokens at step 3"
    with pytest.raises(slc.activations.NonFiniteError, match=message):
        run.fit()
    (checkpoint,) = tmp_path.iterdir()
    saved = crosscoder()
    saved.load_weights_from_checkpoint(checkpoint)
    expected = weights(reference.sae)
    assert all(torch.equal(value, expected[name]) for name, value in weights(saved).items())


def test_a_loss_that_explodes_on_finite_activations_says_so(activations):
    run = trainer(activations, cfg=config(lr=1e30), kind="l1")
    with pytest.raises(slc.activations.NonFiniteError, match=r"on finite activations|although its loss was finite"):
        run.fit()


def test_a_stream_that_ends_early_is_named_and_nothing_is_lost(activations, tmp_path):
    run = trainer(activations, cfg=config(checkpoint_path=str(tmp_path)), stream=iter([activations[:BATCH]] * 2))
    with pytest.raises(ValueError, match=r"ended after 128 tokens, but total_training_samples=384"):
        run.fit()
    assert [path.name for path in tmp_path.iterdir()] == ["128"]


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ([], "ended after 0 tokens"),
        ([torch.zeros(4, 127)], r"last axis is 127 wide, expected 128, the sum of the models' widths \(64, 64\)"),
        ([torch.zeros(0, 128)], r"at least one token, not \(0, 128\)"),
    ],
)
def test_a_wrong_stream_is_refused_at_the_first_step(activations, stream, message):
    with pytest.raises(ValueError, match=message):
        trainer(activations, stream=iter(stream)).fit()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"total_training_samples": 10}, "less than one batch"),
        ({"lr_warm_up_steps": 5, "lr_decay_steps": 5}, "exceed the 6 steps"),
        ({"log_frequency": 0}, "log_frequency=0 must be at least 1"),
    ],
)
def test_a_schedule_that_cannot_be_is_refused(fields, message):
    given = {"total_training_samples": 384, "train_batch_size_samples": 64, "lr_warm_up_steps": 0} | fields
    with pytest.raises(ValueError, match=message):
        slc.CrosscoderTrainerConfig(**given)


def test_only_training_crosscoders_are_trained(activations, tmp_path):
    sae = trainer(activations).fit()
    sae.save_inference_model(tmp_path)
    with pytest.raises(ValueError, match="CrosscoderTrainer trains crosscoders, but got a JumpReLUCrosscoder"):
        _unchecked_trainer(slc.load(tmp_path))


def _unchecked_trainer(sae):
    """Built past the type checker that the tests run under, so that the message is ours."""
    init = slc.CrosscoderTrainer.__init__
    return getattr(init, "__wrapped__", init)(object.__new__(slc.CrosscoderTrainer), config(), sae, iter(()))


def test_activation_scales_are_estimated_on_batches_that_are_not_trained_on(activations):
    seen = []

    def stream():
        for batch in shuffled_batches(activations, BATCH, seed=0):
            seen.append(batch)
            yield batch

    cfg = config(n_batches_for_norm_estimate=4)
    run = trainer(activations, cfg=cfg, stream=stream(), activation_scaling="per_model")
    run.fit()
    assert len(seen) == 10
    estimate = torch.cat(seen[:4])
    expected = [8 / estimate[:, cut].double().norm(dim=-1).mean().item() for cut in (slice(0, 64), slice(64, 128))]
    assert run.sae.cfg.activation_scales == pytest.approx(expected, rel=1e-5)


def test_a_stream_too_short_for_the_scales_is_named(activations):
    run = trainer(activations, stream=iter([activations[:BATCH]] * 9), activation_scaling="per_model")
    with pytest.raises(ValueError, match="n_batches_for_norm_estimate=1000 batches, before training"):
        run.fit()


def test_saelens_joint_normalisation_trains_as_on_scaled_data(activations):
    cfg = config(n_batches_for_norm_estimate=2)
    run = trainer(activations, cfg=cfg, normalize_activations="expected_average_only_in")
    run.fit()
    batches = shuffled_batches(activations, BATCH, seed=0)
    estimate = torch.cat([next(batches), next(batches)]).double()
    scale = (128**0.5) / estimate.norm(dim=-1).mean().item()
    assert run.sae.input_scales.tolist() == pytest.approx([scale, scale], rel=1e-5)
    assert run.activation_scaler.scaling_factor is None
