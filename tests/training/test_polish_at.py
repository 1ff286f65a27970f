"""Polish within a training run: it finds what BatchTopK missed, resumes, and is refused where it cannot be."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.scoring import score_card, truth_table
from sae_lens_crosscoder.synthetic.worlds import null_world, world_a
from sae_lens_crosscoder.training.polishing import in_training
from sae_lens_crosscoder.training.polishing.feed_forward import take_dictionary
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks
from sae_lens_crosscoder.training.polishing.rounds import PolishState
from tests.crosscoders.conftest import batchtopk_crosscoder, stacked_batch

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

BATCH = 512
WORLDS = {"d_model 32": world_a(seed=0, d_models=(32, 32)), "null": null_world(seed=0, d_models=(32, 32))}


def trainer_of(world, steps=600, d_sae=256, batches=None, crosscoder=None, **options):
    torch.manual_seed(0)
    fields = {"polish_at": 0.65, "polish_tokens_per_round": 8192} | (crosscoder or {})
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_model=32, d_sae=d_sae, k=world.l0, score="max", decoder_bias_init="zeros", topk_threshold_lr=0.01, **fields
    )
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=steps * BATCH, train_batch_size_samples=BATCH, lr=5e-3,
        lr_warm_up_steps=min(15, steps // 4), lr_decay_steps=steps // 4,
        dead_feature_window=200, log_frequency=1, **options,
    )  # fmt: skip
    if batches is None:
        batches = shuffled_batches(world.sample(40_000, seed=1000).activations, BATCH, seed=0)
    return slc.CrosscoderTrainer(trainer_cfg, slc.BatchTopKTrainingCrosscoder(cfg), batches)


@pytest.mark.parametrize("name", list(WORLDS))
def test_concepts_that_one_model_alone_has_are_found_in_superposition_and_none_where_there_are_none(name, tmp_path):
    world = WORLDS[name]
    trainer_of(world).fit().save_inference_model(tmp_path)
    crosscoder, tokens = slc.load(tmp_path), world.sample(20_000, seed=2000)
    latents = slc.diagnose(crosscoder, slc.EvalData(activations=tokens.activations.split(4096))).latents
    card = score_card(world, truth_table(world, crosscoder, tokens), latents)
    if name == "null":
        assert card.chat_verdict.n == card.base_verdict.n == 0
    else:  # without polish this training finds none
        assert card.chat_verdict.recall >= 0.9
        assert card.base_verdict.recall >= 0.9
        assert card.chat_verdict.precision >= 0.85


def small(**options):
    crosscoder = {"polish_at": 0.5, "polish_tokens_per_round": 1024}
    batches = shuffled_batches(WORLDS["d_model 32"].sample(4096, seed=3).activations, BATCH, seed=0)
    return trainer_of(WORLDS["d_model 32"], steps=8, d_sae=64, batches=batches, crosscoder=crosscoder, **options)


def test_only_the_dictionary_of_the_step_after_polish_at_is_new_and_everything_about_the_old_one_is_forgotten(
    monkeypatch,
):
    trainer, seen = small(), []

    def spied(of, batches):
        before = of.sae.W_dec.clone()
        original(of, batches)
        moments = [moment for state in of.optimizer.state.values() for moment in state.values()]
        assert len(moments) > 0
        assert all((moment == 0).all() for moment in moments)
        assert of.sae.n_threshold_samples == 0
        assert (of.n_forward_passes_since_fired == 0).all()
        seen.append((of.n_training_steps, torch.equal(before, of.sae.W_dec)))

    original = in_training.polish_in_training
    monkeypatch.setattr("sae_lens_crosscoder.training.loop.polish_in_training", spied)
    trainer.fit()
    assert seen == [(4, False)]
    assert len(trainer.history) == 8
    assert trainer.sae.n_threshold_samples == 4


@pytest.mark.parametrize("which", [0, -1])
def test_a_run_resumes_to_the_same_bits_from_before_and_after_the_polish(which, tmp_path):
    unbroken = small().fit()
    small(checkpoint_path=str(tmp_path), n_checkpoints=2).fit()
    saved = sorted(tmp_path.glob("**/trainer_state.pt"), key=lambda path: int(path.parent.name))
    assert len(saved) == 2
    assert int(saved[0].parent.name) <= 4 * BATCH < int(saved[1].parent.name)
    resumed = small(resume_from_checkpoint=str(saved[which].parent)).fit()
    for name, expected in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], expected), name


def test_the_crosscoder_reads_by_the_rows_of_the_polish_what_is_left_without_the_bias():
    crosscoder, x = batchtopk_crosscoder(), stacked_batch()
    state = PolishState(crosscoder.W_dec * 1.7, crosscoder.b_dec + 0.3, LatentHooks.of(crosscoder))
    state.W_enc = torch.randn(11, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    take_dictionary(crosscoder, state)
    pre = crosscoder.encode_with_hidden_pre(x)[1]
    torch.testing.assert_close(pre, (x - state.b_dec) @ state.W_enc.T)
    assert torch.equal(crosscoder.W_dec, state.W_dec)


def test_where_it_cannot_be_it_is_refused_before_anything_runs():
    for fields, message in (
        ({"polish_at": 0.0}, "polish_at=0.0 must be a share of the steps between 0 and 1"),
        ({"polish_at": 1.0}, "polish_at=1.0 must be a share"),
        ({"polish_at": 0.5, "polish_tokens_per_round": 0}, "polish_tokens_per_round=0 must be at least 1"),
        ({"polish_at": 0.5, "n_chat_exclusive": 2}, "polish_at=0.5 is not available for a batchtopk_crosscoder with"),
    ):
        with pytest.raises(ValueError, match=message):
            batchtopk_crosscoder(**fields)
    topk = slc.crosscoders.TopKCrosscoderTrainingConfig
    with pytest.raises(ValueError, match=r"polish_at=0\.5 is not available for a topk_crosscoder"):
        topk(d_model=4, d_sae=8, k=2, polish_at=0.5)
    with pytest.raises(ValueError, match=r"polish_at=0\.99 leaves no step of the 8 behind it"):
        trainer_of(WORLDS["null"], steps=8, crosscoder={"polish_at": 0.99})
    several = small()
    several.collectives = type("Several", (), {"n_processes": 2})()
    with pytest.raises(ValueError, match=r"polish_at=0\.5 is not available on 2 processes"):
        several.fit()


def test_its_settings_are_written_and_read_as_they_were():
    cfg = batchtopk_crosscoder(polish_at=0.5, polish_tokens_per_round=100).cfg
    assert slc.BatchTopKCrosscoderTrainingConfig.from_dict(cfg.to_dict()) == cfg
