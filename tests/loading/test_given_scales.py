"""A crosscoder that was trained without scales, read with them: same function, other space."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.synthetic import Concept, PlantedWorld, shuffled_batches
from sae_lens_crosscoder.synthetic.scoring import score_card, truth_table
from tests.crosscoders.conftest import batchtopk_crosscoder, stacked_batch, step

KINDS = [*["shared"] * 16, *["chat_only"] * 6, *["base_only"] * 3]
SCALES = (2.0, 0.25)


@pytest.fixture
def folder(tmp_path):
    crosscoder = batchtopk_crosscoder(d_models=(3, 3))
    crosscoder.training_forward_pass(step(stacked_batch(d_in=6)))
    crosscoder.save_inference_model(tmp_path)
    return tmp_path


def test_the_function_stays_and_the_space_changes(folder):
    plain, read, x = slc.load(folder), slc.load(folder, activation_scales=SCALES), stacked_batch(d_in=6, n=300)
    assert torch.equal(plain.encode(x), read.encode(x))
    assert torch.equal(plain(x), read(x))
    torch.testing.assert_close(read.decoder_norms, plain.decoder_norms * torch.tensor(SCALES))
    assert plain.cfg.activation_scales is None
    assert read.cfg.activation_scales == SCALES
    before, after = (slc.diagnose(one, slc.EvalData(activations=[x]), min_active=1) for one in (plain, read))
    torch.testing.assert_close(torch.tensor(after.latents.delta_norm_raw), torch.tensor(before.latents.delta_norm))
    assert (before.manifest["space"], after.manifest["space"]) == ("raw", "scaled after training")
    torch.testing.assert_close(
        torch.tensor(after.latents.nu_error_unfiltered), 8 * torch.tensor(before.latents.nu_error_unfiltered)
    )


def test_scales_of_one_are_no_scales(folder):
    plain, read, x = slc.load(folder), slc.load(folder, activation_scales=(1.0, 1.0)), stacked_batch(d_in=6, n=300)
    tables = [slc.diagnose(one, slc.EvalData(activations=[x])).latents for one in (plain, read)]
    for name in ("delta_norm", "nu_error", "nu_reconstruction", "nu_free"):
        torch.testing.assert_close(torch.tensor(tables[0][name]), torch.tensor(tables[1][name]), equal_nan=True)


def test_it_is_saved_and_loaded_with_its_scales_and_where_they_are_from(folder, tmp_path):
    read = slc.load(folder, activation_scales=SCALES)
    read.save_model(tmp_path / "again")
    again = slc.load(tmp_path / "again")
    assert again.cfg.activation_scales == SCALES
    assert again.cfg.metadata.scales_given_after_training is True
    assert slc.load(folder).cfg.metadata.scales_given_after_training is None


def test_what_cannot_be_read_so_is_refused(folder, tmp_path):
    read = slc.load(folder, activation_scales=SCALES)
    with pytest.raises(ValueError, match=r"the crosscoder was trained with activation_scales=\(2.0, 0.25\)"):
        read.with_activation_scales((1.0, 2.0))
    for wrong in ((1.0,), (1.0, -1.0), (1.0, 2.0, 3.0)):
        with pytest.raises(ValueError, match="must have one positive factor for each of 2 sources"):
            slc.load(folder).with_activation_scales(wrong)
    with pytest.raises(ValueError, match="were given after training"):
        slc.convert.save_dictionary_learning(read, tmp_path / "theirs", k=2)


def test_with_chat_50_times_louder_scales_give_back_the_planted_concepts(tmp_path):
    """Without scales every latent is chat-only."""
    world = PlantedWorld([Concept(kind, 0.06) for kind in KINDS], d_models=(32, 32), gains=(1.0, 50.0))
    torch.manual_seed(0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_model=32, d_sae=64, k=1.5, decoder_bias_init="zeros", topk_threshold_lr=0.01
    )
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=900 * 256, train_batch_size_samples=256, lr=2e-2, lr_warm_up_steps=20,
        lr_decay_steps=200, dead_feature_window=200,
    )  # fmt: skip
    batches = shuffled_batches(world.sample(20_000, seed=1).activations, 256, seed=0)
    trainer = slc.CrosscoderTrainer(trainer_cfg, slc.BatchTopKTrainingCrosscoder(cfg), batches)
    trainer.fit().save_inference_model(tmp_path)
    tokens = world.sample(20_000, seed=2)
    norms = slc.activations.MeanNorms(world.layout)
    norms.add(tokens.activations)
    cards = []
    for scales in (None, tuple(norms.scales().tolist())):
        crosscoder = slc.load(tmp_path, activation_scales=scales)
        latents = slc.diagnose(crosscoder, slc.EvalData(activations=tokens.activations.split(4096))).latents
        cards.append(score_card(world, truth_table(world, crosscoder, tokens), latents))
    assert cards[0].chat_delta_norm.precision < 0.5
    assert cards[1].chat_verdict.precision == 1
    assert cards[1].chat_verdict.recall == 1
