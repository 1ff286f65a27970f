"""Null pairs made from a pair, and the crosscoders trained on them."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_dataset

TOKENS = torch.tensor(tiny_dataset(60, seed=3)["input_ids"])[:, :20]


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


def rows_of(null):
    return null.pair.layout_at(TINY_HOOK).split(null.activations(TOKENS, TINY_HOOK))


def test_jittered_pairs_differ_a_little_and_by_their_seeds(pair):
    first, second = slc.workflows.null_family(pair).pairs
    (base, noisy), (base_again, other) = rows_of(first), rows_of(second)
    own = pair.layout_at(TINY_HOOK).split(pair.activations(TOKENS, TINY_HOOK).flatten(0, 1))[0]
    torch.testing.assert_close(base, own)
    torch.testing.assert_close(base_again, own)
    for moved in (noisy, other):
        assert 0.005 < ((moved - base).norm(dim=1) / base.norm(dim=1)).median() < 0.1
    assert not torch.allclose(noisy, other, atol=1e-3)
    named = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-base+jitter=0.02")
    torch.testing.assert_close(named.activations(TOKENS, TINY_HOOK).flatten(0, 1)[:, 96:], noisy)


def test_unpaired_nulls_have_the_same_rows_elsewhere(pair):
    shuffled, other_text = slc.workflows.null_family(pair, ["other_text", "shuffled"], n_per_kind=1).pairs
    base, moved = rows_of(shuffled)
    assert not torch.allclose(base, moved)
    torch.testing.assert_close(base.sum(dim=1).sort().values, moved.sum(dim=1).sort().values)
    first, second = rows_of(other_text)
    torch.testing.assert_close(torch.cat([first, second]), base)
    assert [null.judges_specificity for null in (shuffled, other_text)] == [False, False]


def test_its_runs_are_null_runs_of_the_crosscoder(pair):
    trainer = slc.CrosscoderTrainerConfig(
        total_training_samples=40 * 64, train_batch_size_samples=64, lr=5e-3, lr_warm_up_steps=0
    )
    recipe = slc.training.TrainingRecipe(slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=32, k=4), trainer)
    batches = slc.synthetic.shuffled_batches(pair.activations(TOKENS, TINY_HOOK).flatten(0, 1).detach(), 64, seed=0)
    crosscoder = recipe.train(batches)
    crosscoder.cfg.metadata.model_name, crosscoder.cfg.metadata.chat_model_name = pair.model_names
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    data = slc.EvalData(pair=pair, tokens=TOKENS)
    family = slc.workflows.null_family(pair, ["jittered", "shuffled"], n_per_kind=1)
    runs = family.run(crosscoder, data, TOKENS, min_active=5)
    assert (len(runs.uses), len(runs.diagnoses)) == (2, 1)
    use = slc.latent_use(crosscoder, data, null=runs.uses, min_active=5)
    assert use.latents.q_use.notna().any()
    assert "2 null runs" in use.conclusion
    diagnosis = slc.diagnose(crosscoder, data, null=runs.diagnoses, use=use, min_active=5)
    assert diagnosis.latents.q_value.notna().any()
    assert diagnosis.latents.q_use.equals(use.latents.q_use)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["neutral"]}, r"kinds=\['neutral'\] contains 'neutral'. Choose from jittered, shuffled, other_text"),
        ({"kinds": []}, "make no null pair"),
        ({"n_per_kind": 0}, "make no null pair"),
        ({"jitter": 0.0}, "jitter=0.0 must be between 0 and 1"),
    ],
)
def test_families_that_cannot_be_made_are_refused(pair, options, message):
    with pytest.raises(ValueError, match=message):
        slc.workflows.null_family(pair, **options)
