"""A planted world with 1 % of tokens at 100 times the norm: verdicts and FVE are as without them."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from tests.science.test_invariances import BATCH, CONFIGS, small_world

STEPS = 400


def without_sinks(batches):
    """All rows but the sinks in the same order, as full batches."""
    rest = torch.zeros(0, 32)
    for batch in batches:
        rest = torch.cat([rest, batch[batch.norm(dim=-1) < 12]])
        if len(rest) >= BATCH:
            yield rest[:BATCH]
            rest = rest[BATCH:]


def diagnosed(activations, fresh, folder, *, sinks=True, max_norm_ratio=10.0):
    """The diagnosis of a BatchTopK crosscoder, trained and diagnosed with or without the sinks in its data."""
    crosscoder_class, config_class, fields = CONFIGS["batchtopk"]
    torch.manual_seed(1)
    crosscoder = crosscoder_class(config_class(d_model=16, d_sae=40, **fields))
    cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=STEPS * BATCH,
        train_batch_size_samples=BATCH,
        lr=1e-2,
        lr_warm_up_steps=20,
        lr_decay_steps=100,
        dead_feature_window=50,
        max_norm_ratio=max_norm_ratio,
    )
    stream = shuffled_batches(activations, BATCH, seed=0)
    slc.CrosscoderTrainer(cfg, crosscoder, stream if sinks else without_sinks(stream)).fit()
    crosscoder.save_inference_model(folder)
    if not sinks:
        fresh = torch.cat(list(without_sinks(fresh.split(BATCH))))
    return slc.diagnose(slc.load(folder), slc.EvalData(activations=fresh, max_norm_ratio=max_norm_ratio))


def n_specific(diagnosis, side):
    return int((diagnosis.latents.verdict == f"{side}_specific").sum())


@pytest.mark.parametrize("models", [("base", "chat"), ("chat",)])
def test_verdicts_and_fve_are_as_without_them(tmp_path, models):
    world = small_world(frac_sinks=0.01, sink_models=models)
    activations, fresh = (world.sample(BATCH * 80, seed=seed) for seed in (1, 2))
    protected, without, unprotected = (
        diagnosed(activations.activations, fresh.activations, tmp_path / str(i), **options)
        for i, options in enumerate(({}, {"sinks": False, "max_norm_ratio": None}, {"max_norm_ratio": None}))
    )
    n = without.manifest["n_tokens"]  # full batches, so a few of the last tokens are missing
    assert abs(protected.manifest["n_tokens"] - n) < BATCH
    assert protected.latents.verdict.tolist() == without.latents.verdict.tolist()
    assert n_specific(without, "chat") >= 4
    assert n_specific(unprotected, "chat") != n_specific(without, "chat")
    for name in ("base", "chat", "difference"):
        assert protected.manifest["fve"][name] == pytest.approx(without.manifest["fve"][name], abs=1e-3)
    assert protected.manifest["dominant_tokens"]["n_left_out"] == int(fresh.is_sink.sum())
    assert protected.manifest["dominant_tokens"]["frac_energy"]["chat"] > 0.98


def test_the_null_twin_stays_null(tmp_path):
    """Shared concepts only; nothing is specific to a model with or without sinks."""
    world = small_world(frac_sinks=0.01)
    twin = world.sample(20_000, seed=1)
    base = twin.activations[:, :16]
    noise = 0.02 * torch.randn(base.shape, generator=torch.Generator().manual_seed(5))
    activations = torch.cat([base, base + noise], dim=1)

    diagnosis = diagnosed(activations, activations, tmp_path)
    assert n_specific(diagnosis, "chat") == n_specific(diagnosis, "base") == 0
    assert diagnosis.manifest["dominant_tokens"]["n_left_out"] == int(twin.is_sink.sum())
