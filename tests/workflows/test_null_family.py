"""Null pairs made from a pair, and the crosscoders trained on them."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, tiny_dataset
from tests.causal.conftest import random_crosscoder
from tests.models.adapters import save_adapter, save_base

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
    assert first.pair.model_names == ("tiny-base", "tiny-base (jittered, seed 0)")
    assert second.pair.model_names == ("tiny-base", "tiny-base (jittered, seed 1)")
    assert first.model == 0
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


def test_unpaired_nulls_leave_masked_tokens_out_and_pair_as_many_of_either_half(pair):
    nulls = slc.workflows.null_family(pair, ["shuffled", "other_text"]).pairs
    token_mask = torch.ones_like(TOKENS, dtype=torch.bool)
    token_mask[0, :3] = False  # an odd number of tokens is left
    own = pair.layout_at(TINY_HOOK).split(pair.activations(TOKENS, TINY_HOOK)[token_mask])[0]
    half = len(own) // 2
    split = pair.layout_at(TINY_HOOK).split
    shuffled = [split(null.activations(TOKENS, TINY_HOOK, token_mask=token_mask)) for null in nulls[:2]]
    for base, _ in shuffled:
        torch.testing.assert_close(base, own)
    assert not torch.allclose(shuffled[0][1], shuffled[1][1])  # each seed has its own order
    first, second = split(nulls[2].activations(TOKENS, TINY_HOOK, token_mask=token_mask))
    torch.testing.assert_close(first, own[:half])
    torch.testing.assert_close(second, own[half : 2 * half])


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
    assert [use.manifest["null_kind"] for use in runs.uses] == ["jittered", "shuffled"]
    assert runs.diagnoses[0].manifest["null_kind"] == "jittered"
    use = slc.latent_use(crosscoder, data, null=runs.uses, min_active=5)
    assert use.latents.q_use.notna().any()
    assert "2 null runs of 2 kinds" in use.conclusion
    diagnosis = slc.diagnose(crosscoder, data, null=runs.diagnoses, use=use, min_active=5)
    assert diagnosis.latents.q_value.notna().any()
    assert diagnosis.latents.q_use.equals(use.latents.q_use)


def test_models_that_were_trained_alike_are_a_null_pair_of_both_readings(pair):
    three = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat", "tiny-null")
    nulls = slc.workflows.null_family(three, ["split_halves"], halves=("tiny-chat", "tiny-null")).pairs
    assert [(null.kind, null.seed, null.judges_specificity) for null in nulls] == [
        ("split_halves", 0, True),
        ("split_halves", 1, True),
    ]
    chat, null = rows_of(nulls[0])
    of_three = three.layout_at(TINY_HOOK).split(three.activations(TOKENS, TINY_HOOK).flatten(0, 1))
    assert torch.equal(chat, of_three[1])
    assert torch.equal(null, of_three[2])
    assert nulls[0].pair.members[0] is three.members[1]  # weights are shared
    assert nulls[0].model == 1  # of chat, and read at chat's hook
    with pytest.raises(ValueError, match=r"with halves=\('tiny-chat',\) needs two models"):
        slc.workflows.null_family(three, ["split_halves"], halves=("tiny-chat",))
    with pytest.raises(ValueError, match=r"with halves=None needs two models.*but the pair has 2 models"):
        slc.workflows.null_family(pair, ["split_halves"])
    with pytest.raises(ValueError, match=r"needs two models that were trained alike.*Load the second"):
        slc.workflows.null_family(pair, ["split_halves"], halves=("tiny-base", "tiny-chat"))
    with pytest.raises(ValueError, match="must be two of the models"):
        slc.workflows.null_family(three, ["split_halves"], halves=("tiny-chat", "another"))


@pytest.mark.parametrize("model_class", ["TransformerBridge", "AutoModelForCausalLM"])
def test_an_adapter_trained_on_neutral_text_stands_beside_its_base(model_class, tmp_path):
    base = save_base(tmp_path / "base")
    neutral, chat = (save_adapter(tmp_path / f"{seed}", base, seed) for seed in (1, 2))
    pair = slc.HookedModelPair.from_pretrained(base, f"{base}+adapter={chat}", model_class_name=model_class)
    family = slc.workflows.null_family(pair, ["jittered", "neutral_adapter"], n_per_kind=1, adapter=neutral)
    expected = slc.HookedModelPair.from_pretrained(base, f"{base}+adapter={neutral}", model_class_name=model_class)
    hook = "model.layers.2" if model_class == "AutoModelForCausalLM" else "blocks.2.hook_resid_post"
    jittered, neutral_pair = (null.pair.activations(TOKENS[:2], hook) for null in family.pairs)
    torch.testing.assert_close(neutral_pair, expected.activations(TOKENS[:2], hook))
    of_base, noisy = jittered.split(32, dim=-1)
    torch.testing.assert_close(of_base, pair.activations(TOKENS[:2], hook)[..., :32])
    assert 0 < ((noisy - of_base).norm() / of_base.norm()) < 0.3
    assert [null.judges_specificity for null in family.pairs] == [True, True]
    with pytest.raises(ValueError, match=r"'neutral_adapter' with adapter=None loads the base model again"):
        slc.workflows.null_family(pair, ["neutral_adapter"])
    nameless = slc.HookedModelPair(*pair.members)
    with pytest.raises(ValueError, match=r"'jittered' loads the base model again.*but the pair has no names"):
        slc.workflows.null_family(nameless)
    with pytest.raises(ValueError, match="that no name was given for"):
        slc.workflows.null_family(nameless, ["neutral_adapter"], adapter=neutral)


def test_an_adapters_null_pair_is_loaded_as_the_pair_was(tmp_path):
    base = save_base(tmp_path / "base")
    neutral, chat = (save_adapter(tmp_path / f"{seed}", base, seed) for seed in (1, 2))
    options = {"dtype": "bfloat16", "token_replacements": {"<sot>": "<pad>"}}
    pair = slc.HookedModelPair.from_pretrained(base, f"{base}+adapter={chat}", **options)
    (null,) = slc.workflows.null_family(pair, ["neutral_adapter"], n_per_kind=1, adapter=neutral).pairs
    assert {parameter.dtype for parameter in null.pair.base.parameters()} == {torch.bfloat16}
    assert null.pair.token_replacements == pair.token_replacements != {}
    both = slc.HookedModelPair.from_pretrained(f"{base}+adapter={neutral}", f"{base}+adapter={chat}")
    with pytest.raises(ValueError, match=r"'neutral_adapter' with adapter=.* loads the base model again"):
        slc.workflows.null_family(both, ["neutral_adapter"], adapter=neutral)


def test_a_built_in_model_takes_no_adapter(pair):
    with pytest.raises(ValueError, match="'tiny-base' takes no adapters"):
        slc.workflows.null_family(pair, ["neutral_adapter"], adapter="folder")


def test_a_crosscoder_of_other_widths_is_refused_before_training(pair):
    crosscoder = random_crosscoder((96, 64), dtype="float32")
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    with pytest.raises(ValueError, match=r"'jittered' has widths \(96, 96\), but the crosscoder reads \(96, 64\)"):
        slc.workflows.null_family(pair).run(crosscoder, slc.EvalData(pair=pair, tokens=TOKENS), TOKENS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kinds": ["neutral"]}, r"kinds=\['neutral'\] contains 'neutral'. Choose from jittered, shuffled, other_text"),
        ({"halves": ("a", "b")}, r"halves=\('a', 'b'\) goes with the kind 'split_halves'"),
        ({"adapter": "folder"}, "adapter='folder' goes with the kind 'neutral_adapter'"),
        ({"kinds": []}, "make no null pair"),
        ({"n_per_kind": 0}, "make no null pair"),
        ({"jitter": 0.0}, "jitter=0.0 must be between 0 and 1"),
    ],
)
def test_families_that_cannot_be_made_are_refused(pair, options, message):
    with pytest.raises(ValueError, match=message):
        slc.workflows.null_family(pair, **options)
