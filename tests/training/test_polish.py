"""Polish: pursuit and refit are their formulas, and planted concepts that BatchTopK merged are found."""

import re
import tempfile
import warnings
from functools import cache

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.storage import accumulators
from sae_lens_crosscoder.synthetic.null_streams import shuffled_batches
from sae_lens_crosscoder.synthetic.scoring import score_card, truth_table
from sae_lens_crosscoder.synthetic.worlds import null_world, world_a
from sae_lens_crosscoder.training.polishing import pursuit
from sae_lens_crosscoder.training.polishing.pursuit import pursue
from sae_lens_crosscoder.training.polishing.refit import refit_decoder
from sae_lens_crosscoder.training.polishing.replacement import free_slots, missing_directions
from tests.reference import pursuit as ref
from tests.training.test_reading import acausal

pytestmark = pytest.mark.usefixtures("types_unchecked_in_the_module")

BATCH = 512


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def units_of(n, width, seed=1):
    return torch.nn.functional.normalize(draw(n, width, seed=seed), dim=1)


def dense_codes(found, n_atoms):
    codes = torch.zeros(len(found.value), n_atoms, dtype=torch.float64)
    for row, (latents, values) in enumerate(zip(found.latent, found.value, strict=True)):
        for latent, value in zip(latents.tolist(), values.tolist(), strict=True):
            codes[row, latent] += value
    return codes


@pytest.mark.parametrize("min_gain", [0.0, 0.4, 100.0])
@pytest.mark.parametrize("max_atoms", [1, 4, 30])
@pytest.mark.parametrize("gram_bytes", [2**20, 0])
def test_pursuit_is_the_loop_over_one_token_after_another(min_gain, max_atoms, gram_bytes, monkeypatch):
    monkeypatch.setattr(pursuit, "_gram_bytes", lambda _: gram_bytes)
    x, units = draw(25, 6), units_of(14, 6)
    found = dense_codes(pursue(x, units, min_gain, max_atoms, n_candidates=14), 14)
    expected = torch.zeros_like(found)
    for row, token in enumerate(x.tolist()):
        for atom, value in ref.pursue(token, units.tolist(), min_gain, max_atoms).items():
            expected[row, atom] = value
    assert min_gain == 100.0 or (expected > 0).any()
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


def test_with_few_candidates_a_token_chooses_among_those_most_correlated_with_it():
    x, units = draw(40, 6), units_of(20, 6)
    found = dense_codes(pursue(x, units, 0.0, 5, n_candidates=7), 20)
    for row, token in enumerate(x.tolist()):
        nearest = sorted(range(20), key=lambda j: -ref.dot(token, units[j].tolist()))[:7]
        expected = ref.pursue(token, units[nearest].tolist(), 0.0, 5)
        for j in range(20):
            value = expected.get(nearest.index(j), 0.0) if j in nearest else 0.0
            assert found[row, j].item() == pytest.approx(value, abs=1e-8)


def test_the_refit_is_least_squares_with_an_intercept_and_leaves_rare_atoms_alone():
    codes = (draw(40, 6, seed=3) - 0.8).clamp(min=0)
    codes[:, 4] = 0
    codes[1:, 5], codes[0, 5] = 0, 2.0
    x, decoder = draw(40, 3, seed=4) + 1, draw(6, 3, seed=5)
    W_dec, b_dec = refit_decoder(x, *pairs_of(codes), decoder, acausal(decoder))
    expected_W, expected_b = ref.refit(x.tolist(), codes.tolist(), decoder.tolist())
    torch.testing.assert_close(W_dec, torch.tensor(expected_W, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(b_dec, torch.tensor(expected_b, dtype=torch.float64), rtol=1e-5, atol=1e-6)
    assert torch.equal(W_dec[4:], decoder[4:])


def test_slots_of_unused_atoms_and_of_the_rarer_of_two_duplicates_are_free():
    units = torch.eye(5)
    units[1] = torch.nn.functional.normalize(units[0] + 0.05 * units[3], dim=0)
    assert free_slots(units, torch.tensor([50, 60, 3, 4, 0])).tolist() == [True, False, True, False, True]


def test_missing_directions_are_those_that_several_large_residuals_share():
    directions = torch.eye(6)
    residual = 3 * torch.cat([directions[0].repeat(5, 1), directions[1].repeat(9, 1), directions[2:3]])
    residual = torch.cat([residual, 0.1 * directions[3].repeat(20, 1)])
    found = missing_directions(residual, min_energy=1.0, n_most=4)
    torch.testing.assert_close(found, directions[[1, 0]])
    assert len(missing_directions(residual, min_energy=1.0, n_most=1)) == 1
    assert missing_directions(residual, min_energy=99.0, n_most=4).shape == (0, 6)


@cache
def start(world_name, n_steps=400):
    """A short BatchTopK training on a world, its pool, and the crosscoder."""
    world = world_a(seed=0, d_models=(32, 32)) if world_name == "d_model 32" else null_world(seed=0, d_models=(32, 32))
    torch.manual_seed(0)
    cfg = slc.BatchTopKCrosscoderTrainingConfig(
        d_models=world.layout.d_models, d_sae=256, k=world.l0, decoder_bias_init="zeros", topk_threshold_lr=0.01
    )
    pool = world.sample(40_000, seed=1000).activations
    trainer_cfg = slc.CrosscoderTrainerConfig(
        total_training_samples=n_steps * BATCH, train_batch_size_samples=BATCH, lr=5e-3, lr_warm_up_steps=15,
        lr_decay_steps=100, dead_feature_window=200,
    )  # fmt: skip
    trainer = slc.CrosscoderTrainer(
        trainer_cfg, slc.BatchTopKTrainingCrosscoder(cfg), shuffled_batches(pool, BATCH, seed=0)
    )
    return world, pool, trainer.fit()


def scored(world, crosscoder):
    tokens = world.sample(20_000, seed=2000)
    with tempfile.TemporaryDirectory() as folder:
        crosscoder.save_inference_model(folder)
        saved = slc.load(folder)
    diagnosis = slc.diagnose(saved, slc.EvalData(activations=tokens.activations.split(4096)))
    return score_card(world, truth_table(world, saved, tokens), diagnosis.latents)


def test_in_superposition_polish_finds_the_planted_concepts_that_batchtopk_missed():
    world, pool, crosscoder = start("d_model 32")
    before = {name: value.clone() for name, value in crosscoder.state_dict().items()}
    cfg = slc.training.PolishConfig(lr=1e-3, stop="noise", n_tokens_per_round=8192, n_steps=200)
    polished = slc.training.polish(crosscoder, shuffled_batches(pool, BATCH, seed=5), cfg)
    assert all(torch.equal(value, before[name]) for name, value in crosscoder.state_dict().items())
    found, missed = scored(world, polished), scored(world, crosscoder)
    assert missed.chat_verdict.recall < 0.3
    assert found.chat_verdict.recall >= 0.9
    assert found.base_verdict.recall >= 0.9
    assert found.chat_verdict.precision >= 0.9


def test_in_a_world_without_differences_polish_finds_none():
    world, pool, crosscoder = start("null")
    cfg = slc.training.PolishConfig(lr=1e-3, stop="noise", n_rounds=5, n_tokens_per_round=4096, n_steps=100)
    polished = slc.training.polish(crosscoder, shuffled_batches(pool, BATCH, seed=5), cfg)
    card = scored(world, polished)
    assert card.chat_verdict.n == card.base_verdict.n == 0


@pytest.mark.parametrize("n_batches", [7, 12])
def test_an_interrupted_polish_resumes_to_the_same_crosscoder(tmp_path, monkeypatch, n_batches):
    monkeypatch.setattr(accumulators, "_SECONDS_BETWEEN_SAVES", 0.0)
    _, pool, crosscoder = start("d_model 32")
    cfg = slc.training.PolishConfig(lr=1e-3, n_rounds=4, n_tokens_per_round=1024, n_steps=10)

    def polished(n=None, path=None):
        batches = shuffled_batches(pool, BATCH, seed=5)
        stream = batches if n is None else (next(batches) for _ in range(n))
        return slc.training.polish(crosscoder, stream, cfg, checkpoint_path=path)

    torch.manual_seed(0)
    unbroken = polished()
    with pytest.raises(ValueError, match="ended"):
        polished(n_batches, tmp_path / "polish")
    assert (tmp_path / "polish").exists()
    resumed = polished(path=tmp_path / "polish")
    assert not (tmp_path / "polish").exists()
    for name, value in unbroken.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], value), name


def test_scaled_activations_are_polished_in_the_scaled_space():
    """A louder chat model changes nothing, because its factor undoes it."""
    pool = world_a(seed=0).sample(4096, seed=1).activations
    loud = pool.clone()
    loud[:, 64:] *= 8
    cfg = slc.training.PolishConfig(lr=1e-3, n_rounds=3, n_tokens_per_round=1024, n_steps=5)
    results = []
    for data in (pool, loud):
        torch.manual_seed(0)
        fields = slc.BatchTopKCrosscoderTrainingConfig(
            d_model=64, d_sae=64, k=4, activation_scaling="per_model", dtype="float64"
        )
        crosscoder = slc.BatchTopKTrainingCrosscoder(fields)
        crosscoder.start_from(data.double())
        results.append(slc.training.polish(crosscoder, shuffled_batches(data.double(), BATCH, seed=5), cfg))
    torch.testing.assert_close(results[0].W_dec, results[1].W_dec, rtol=1e-6, atol=1e-7)
    assert results[1].cfg.activation_scales is not None


def test_a_polish_that_explains_less_than_before_says_so():
    """Some tokens per latent are no basis for a decoder; many are."""
    _, pool, crosscoder = start("null")

    def warnings_of(n_tokens, n_steps):
        cfg = slc.training.PolishConfig(lr=1e-3, n_rounds=4, n_tokens_per_round=n_tokens, n_steps=n_steps)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            slc.training.polish(crosscoder, shuffled_batches(pool, BATCH, seed=5), cfg)
        return [str(warning.message) for warning in caught if "explains" in str(warning.message)]

    (message,) = warnings_of(n_tokens=BATCH, n_steps=1)
    after, before = (float(number) for number in re.findall(r"-?\d\.\d{3}", message))
    assert after < before
    assert warnings_of(n_tokens=16 * BATCH, n_steps=150) == []


def test_what_cannot_be_polished_is_refused():
    batches = shuffled_batches(draw(BATCH, 6), BATCH, seed=0)
    cfg = slc.training.PolishConfig(lr=1e-3)

    def crosscoder(**fields):
        return slc.BatchTopKTrainingCrosscoder(
            slc.BatchTopKCrosscoderTrainingConfig(d_model=3, d_sae=8, k=2, dtype="float64", **fields)
        )

    with pytest.raises(ValueError, match="has seen no data"):
        slc.training.polish(crosscoder(), batches, cfg)
    with pytest.raises(ValueError, match="polish cannot keep a partition"):
        slc.training.polish(crosscoder(n_chat_exclusive=2), batches, cfg)
    with pytest.raises(ValueError, match="takes a BatchTopKTrainingCrosscoder"):
        slc.training.polish(slc.L1TrainingCrosscoder(slc.L1CrosscoderTrainingConfig(d_model=3, d_sae=8)), batches, cfg)
    for fields, message in (({"lr": 0.0}, "lr=0.0 must be positive"), ({"n_candidates": 0}, "n_candidates=0 must be")):
        with pytest.raises(ValueError, match=message):
            slc.training.PolishConfig(**({"lr": 1e-3} | fields))
