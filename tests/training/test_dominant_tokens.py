"""Tokens that dominate never reach a step: weights, budget, threshold, dead counts and metrics are as without."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.resumable import resumable
from sae_lens_crosscoder.cli.train_flags import train_parser
from sae_lens_crosscoder.synthetic.worlds import world_a
from tests.training import test_resume
from tests.training.processes import BATCH as PROCESS_BATCH
from tests.training.processes import D_MODELS, grid, new_trainer, on_processes, whole_weights
from tests.training.processes import activations as process_activations
from tests.training.test_resume import BATCH, STEPS, assert_same, everything, run
from tests.training.test_runner import config as runner_config

LOUD = world_a(seed=0, frac_sinks=0.02).sample(1500, seed=1)


def batches(tokens, n=STEPS + 4):
    return iter(tokens[: n * BATCH].split(BATCH))


def ordinary():
    return LOUD.activations[~LOUD.is_sink]


@pytest.mark.parametrize("kinds", [("l1",), ("batchtopk",), ("l1", "batchtopk")])
@pytest.mark.parametrize("fields", [{}, {"activation_scaling": "per_model"}])
def test_a_run_is_that_of_the_stream_without_them(tmp_path, kinds, fields):
    assert LOUD.is_sink[: STEPS * BATCH].sum() > 10
    protected, without = (
        run(tmp_path / name, batches(tokens), kinds=kinds, crosscoder_fields=fields)
        for name, tokens in (("loud", LOUD.activations), ("ordinary", ordinary()))
    )
    assert_same(protected, without)
    unprotected = run(
        tmp_path / "all", batches(LOUD.activations), kinds=kinds, crosscoder_fields=fields, max_norm_ratio=None
    )
    assert not torch.equal(unprotected[kinds[0]].sae.W_dec, without[kinds[0]].sae.W_dec)


def test_logged_fve_does_not_jump_with_the_batch_that_holds_one(tmp_path):
    """One sink in every second logged batch."""
    tokens = ordinary()[: STEPS * BATCH].clone()
    tokens[BATCH - 1 :: 4 * BATCH] *= 150
    jumps = {}
    for ratio in (10.0, None):
        trainer = run(None, batches(torch.cat([tokens, tokens])), max_norm_ratio=ratio, log_frequency=1)["batchtopk"]
        jumps[ratio] = trainer.history.fve_base.diff().abs().max()
    assert jumps[10.0] < 0.15 < 0.3 < jumps[None]


@pytest.mark.parametrize("n_batches", [2, 5, 11])
@pytest.mark.parametrize("make", test_resume.STREAMS.values(), ids=test_resume.STREAMS)
def test_a_stopped_run_resumes_to_the_bit(tmp_path, make, n_batches):
    unbroken = run(tmp_path / "unbroken", make(LOUD.activations))
    stopping = test_resume.Stopping(
        resumable(make(LOUD.activations)), n_batches, test_resume.raising(OSError("vanished"))
    )
    with pytest.raises(OSError, match="vanished"):
        run(tmp_path / "stopped", stopping)
    resumed = run(tmp_path / "stopped", make(LOUD.activations), resume_from_checkpoint="latest")
    assert_same(resumed, unbroken)
    metadata = [trained["batchtopk"].sae.cfg.metadata for trained in (resumed, unbroken)]
    assert metadata[0].max_norms == metadata[1].max_norms
    assert metadata[0].dominant_tokens == metadata[1].dominant_tokens


def test_the_saved_crosscoder_knows_the_limits_and_what_was_left_out(tmp_path, capsys):
    trained = run(None, batches(LOUD.activations))["batchtopk"].sae
    trained.save_inference_model(tmp_path)
    metadata = slc.load(tmp_path).cfg.metadata
    first = LOUD.activations[:BATCH].reshape(BATCH, 2, 64).norm(dim=-1)
    assert metadata.max_norms == pytest.approx((10 * first.median(dim=0).values).tolist())
    assert metadata.max_norm_ratio == 10
    found = metadata.dominant_tokens
    read = LOUD.is_sink[: found["n_tokens"]]
    assert found["n_left_out"] == int(read.sum()) > 10
    energy = LOUD.activations[: found["n_tokens"], :64].double().square().sum(dim=-1)
    assert found["frac_energy"]["base"] == pytest.approx((energy[read].sum() / energy.sum()).item())
    said = capsys.readouterr().err
    n_first = int(LOUD.is_sink[:BATCH].sum())
    assert said.count("Tokens that dominate: left out") == 1
    assert f"left out {n_first} of {BATCH}" in said


def test_without_a_ratio_nothing_is_measured_or_said(tmp_path, capsys):
    trained = run(None, batches(LOUD.activations), max_norm_ratio=None)["batchtopk"].sae
    metadata = trained.cfg.metadata
    assert (metadata.max_norms, metadata.max_norm_ratio, metadata.dominant_tokens) == (None, None, None)
    assert "dominate" not in capsys.readouterr().err


@pytest.mark.parametrize("ratio", [1.0, 0.0, -1.0])
def test_a_ratio_that_is_none_is_refused_before_anything_runs(tmp_path, ratio):
    with pytest.raises(ValueError, match=f"max_norm_ratio={ratio} must be above 1"):
        test_resume.config(None, max_norm_ratio=ratio)
    with pytest.raises(ValueError, match=f"max_norm_ratio={ratio} must be above 1"):
        runner_config(tmp_path, max_norm_ratio=ratio)


def loud_share(collectives, steps):
    """This process's share of batches in which one process has all the sinks, so that shares differ in what is left."""
    for i, batch in enumerate(process_activations(collectives, steps, "float64")):
        loud = batch.clone()
        if collectives.rank == 0 and i % 2:
            loud[:5] *= 100
        yield loud


def _two_workers(folder, checkpoint=None):
    collectives = grid(1)
    trainer = new_trainer(
        "batchtopk", collectives, 8, stream=loud_share(collectives, 12), checkpoint_path=folder, resume=checkpoint
    )
    trainer.cfg.n_checkpoints, trainer.cfg.save_final_checkpoint = 0, False
    trainer.checkpoint_thresholds = [] if checkpoint else [4 * PROCESS_BATCH]
    trainer.fit()
    metadata = trainer.sae.cfg.metadata
    return whole_weights(trainer), metadata.max_norms, metadata.dominant_tokens


def test_two_workers_use_the_same_limits_and_resume_to_the_bit(tmp_path):
    (weights, *first), (_, *second) = on_processes(2, _two_workers, tmp_path / "run", tmp_path / "checkpoints")
    assert first == second
    norms = next(process_activations(grid(1), 1, "float64"))
    norms = norms.reshape(PROCESS_BATCH, 2, D_MODELS[0]).norm(dim=-1)
    assert first[0] == pytest.approx((10 * norms.median(dim=0).values).tolist())
    assert first[1]["n_left_out"] > 10
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    again, _ = on_processes(2, _two_workers, tmp_path / "again", tmp_path / "more", str(checkpoint))
    assert all(torch.equal(value, again[0][name]) for name, value in weights.items())
    assert again[1:] == (first[0], first[1])


def test_everything_compared_includes_budget_threshold_and_dead_counts():
    compared = everything(run(None, batches(LOUD.activations)))
    assert {"batchtopk fired", "batchtopk frequency", "batchtopk metrics", "batchtopk topk_threshold"} <= set(compared)


@pytest.mark.parametrize(("text", "ratio"), [("None", None), ("12", 12.0)])
def test_the_flag_takes_a_number_or_none(text, ratio):
    flags = {"--d-model": "8", "--d-sae": "16", "--k": "4", "--training-tokens": "4000000", "--max-norm-ratio": text}
    parsed = train_parser("train").parse_args([word for flag in flags.items() for word in flag])
    assert parsed.cfg.max_norm_ratio == ratio
