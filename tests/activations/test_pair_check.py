"""The look before training or caching: pairs that are not two models are refused, numbers are those of a loop."""

import copy
import json

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.looked_at import LookedAt
from sae_lens_crosscoder.activations.pair_check import PairCheck, inspect_cached, inspect_pair
from sae_lens_crosscoder.causal import kl_between_models
from sae_lens_crosscoder.models import hidden_states
from sae_lens_crosscoder.models.loading import add_jitter
from sae_lens_crosscoder.models.tiny import TINY_DATASET, TINY_HOOK
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.training.data.run_cache import write_run_cache
from sae_lens_crosscoder.training.data.run_data import RunData
from tests.models.small_models import llama, random_hooked_transformer, save_pair, some_tokens

HOOK = "blocks.0.hook_resid_post"
TOKENS = some_tokens(4, 12)
MASK = torch.ones_like(TOKENS, dtype=torch.bool)
MASK[:, 0] = False


def config(tmp_path, **fields):
    return slc.CrosscoderRunnerConfig(
        sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=96, d_sae=64, k=4),
        **dict(
            model_name="tiny-base",
            chat_model_name="tiny-chat",
            hook_name=TINY_HOOK,
            dataset_path=TINY_DATASET,
            context_size=64,
            training_tokens=512,
            lr_warm_up_steps=1,
            train_batch_size_tokens=128,
            store_batch_size_prompts=4,
            n_held_out_rows=8,
            checkpoint_path=str(tmp_path / "checkpoints"),
            output_path=str(tmp_path / "output"),
        )
        | fields,
    )


class TestRefused:
    def test_one_model_given_twice(self, tmp_path):
        model = random_hooked_transformer(16, seed=1)
        with pytest.raises(ValueError, match=r"share \d+ parameters, such as 'embed.W_E'.*jitter"):
            inspect_pair(slc.HookedModelPair(model, model), TOKENS, MASK, HOOK)
        tiny = slc.models.load_tiny_model("tiny-base")
        with pytest.raises(ValueError, match="they are not two models"):
            slc.CrosscoderTrainingRunner(config(tmp_path), override_model=slc.HookedModelPair(tiny, tiny))

    def test_one_shared_parameter_is_enough(self):
        base, chat = (random_hooked_transformer(16, seed=seed) for seed in (1, 2))
        chat.embed.W_E = base.embed.W_E
        with pytest.raises(ValueError, match=r"share 1 parameters"):
            inspect_pair(slc.HookedModelPair(base, chat), TOKENS, MASK, HOOK)

    def test_a_pair_may_answer_for_parameters_that_it_shares_on_purpose(self):
        class Adapted(slc.HookedModelPair):
            shared_parameters = ()

        base, chat = (random_hooked_transformer(16, seed=seed) for seed in (1, 2))
        chat.embed.W_E = base.embed.W_E
        assert inspect_pair(Adapted(base, chat), TOKENS, MASK, HOOK).difference > 0

    def test_copies_with_the_same_weights_but_not_a_jittered_one(self):
        base = random_hooked_transformer(16, seed=1)
        chat = copy.deepcopy(base)
        with pytest.raises(ValueError, match=f"at {HOOK} are identical on all 44 tokens.*jitter=0.02"):
            inspect_pair(slc.HookedModelPair(base, chat), TOKENS, MASK, HOOK)
        add_jitter(chat, 0.02)
        assert 0 < inspect_pair(slc.HookedModelPair(base, chat), TOKENS, MASK, HOOK).difference < 0.1

    def test_a_change_behind_the_hook(self):
        base = random_hooked_transformer(16, seed=1)
        chat = copy.deepcopy(base)
        add_jitter(chat.blocks[1], 0.5)
        pair = slc.HookedModelPair(base, chat)
        with pytest.raises(ValueError, match="tuning changed a layer before the hook"):
            inspect_pair(pair, TOKENS, MASK, HOOK)
        inspect_pair(pair, TOKENS, MASK, "blocks.1.hook_resid_post")

    def test_models_that_do_not_differ_before_their_activations_are_cached(self, tmp_path):
        folder = tmp_path / "cache"
        cfg = config(tmp_path, chat_model_name="tiny-base", cached_activations_path=str(folder))
        with pytest.raises(ValueError, match="are identical on all"):
            write_run_cache(cfg)
        assert not folder.exists()

    def test_cached_activations_that_are_identical(self):
        rows = torch.randn(5, 3).repeat(1, 2)
        with pytest.raises(ValueError, match="are identical on all 5 tokens"):
            inspect_cached(rows, StackedLayout((3, 3)), HOOK)

    def test_left_padding(self):
        pair = slc.HookedModelPair(*[random_hooked_transformer(16, seed=seed) for seed in (1, 2)])
        padded, mask = TOKENS.clone(), MASK.clone()
        padded[2, :4], mask[2, :4] = 0, False
        with pytest.raises(ValueError, match="Row 2 of tokens starts with padding"):
            inspect_pair(pair, padded, mask, HOOK)


@pytest.mark.parametrize(
    ("model_class", "name"), [("TransformerBridge", "blocks.{}.hook_out"), ("AutoModelForCausalLM", "model.layers.{}")]
)
def test_a_hook_is_compared_with_hugging_faces_hidden_state(tmp_path, monkeypatch, model_class, name):
    pair = slc.HookedModelPair.from_pretrained(*save_pair(tmp_path, llama), model_class_name=model_class)
    for model in pair.members:
        assert hidden_states.validate_hidden_state(model, "base", TOKENS, name.format(1))
        assert not hidden_states.validate_hidden_state(model, "base", TOKENS, name.format(2))  # normed
    original = hidden_states.activation_at
    monkeypatch.setattr(hidden_states, "activation_at", lambda *args: 1.5 * original(*args))
    with pytest.raises(ValueError, match=r"base model's .* is not Hugging Face's hidden_states\[2\].*50%"):
        inspect_pair(pair, TOKENS, MASK, name.format(1))


class TestNumbers:
    def test_they_are_those_of_a_loop_over_tokens(self):
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
        tokens = torch.tensor([[2, 30, 31, 32, 3], [2, 40, 41, 42, 43]])
        special = set(pair.tokenizer.all_special_ids)
        mask = torch.ones_like(tokens, dtype=torch.bool)
        mask[:, 0] = False
        check = inspect_pair(pair, tokens, mask, TINY_HOOK)
        base, chat = pair.activations(tokens, TINY_HOOK).split(96, dim=-1)
        kl = kl_between_models(pair, tokens)
        differences, kls, norms, specials = [], [], ([], []), ([], [])
        for row in range(2):
            for pos in range(1, 5):
                differences.append(float((chat[row, pos] - base[row, pos]).norm() / base[row, pos].norm()))
                kls.append(float(kl[row, pos]))
                for m, part in enumerate((base, chat)):
                    norms[m].append(float(part[row, pos].norm()))
                    if int(tokens[row, pos]) in special:
                        specials[m].append(norms[m][-1])
        assert check.n_tokens == 8
        assert check.difference == pytest.approx(sorted(differences)[3], rel=1e-5)
        assert check.kl_nats == pytest.approx(sum(kls) / 8, rel=1e-5)
        for m, part in enumerate((base, chat)):
            median = sorted(norms[m])[3]
            first = sorted(float(part[row, 0].norm()) for row in range(2))[0]
            assert check.position_0_norm[m] == pytest.approx(first / median, rel=1e-5)
            expected = max(specials[m]) / median if specials[m] else None
            assert check.special_norm[m] == (None if expected is None else pytest.approx(expected, rel=1e-5))

    def test_models_of_different_width_and_vocabulary(self):
        wide = random_hooked_transformer(24, seed=2, d_vocab=60)
        pair = slc.HookedModelPair(random_hooked_transformer(16, seed=1), wide)
        check = inspect_pair(pair, TOKENS, MASK, HOOK)
        assert check.difference is None
        base, chat = (model(TOKENS)[..., :50].double().log_softmax(-1) for model in pair.members)
        kl = (chat.exp() * (chat - base)).sum(-1)[MASK].mean()
        assert check.kl_nats == pytest.approx(float(kl), rel=1e-4)
        assert check.special_norm == (None, None)
        assert len(check.lines().splitlines()) == 3


class TestRun:
    def test_three_lines_are_printed_and_kept_in_the_saved_metadata(self, tmp_path, capsys):
        runner = slc.CrosscoderTrainingRunner(config(tmp_path))
        assert runner.pair_check.lines() in capsys.readouterr().err
        runner.run()
        saved = json.loads((tmp_path / "output" / "cfg.json").read_text())["metadata"]["pair_check"]
        assert saved == runner.pair_check.to_dict() == slc.load(tmp_path / "output").cfg.metadata.pair_check
        assert 0 < saved["difference"] < 1
        assert saved["kl_nats"] > 0

    def test_it_takes_no_training_data_and_no_random_numbers(self, tmp_path, monkeypatch):
        looked = slc.CrosscoderTrainingRunner(config(tmp_path)).run()
        monkeypatch.setattr(RunData, "inspect_pair", lambda run: PairCheck(0, (), (), None, None))
        blind = slc.CrosscoderTrainingRunner(config(tmp_path)).run()
        assert all(torch.equal(value, blind.state_dict()[name]) for name, value in looked.state_dict().items())

    @pytest.mark.parametrize("in_memory", ["one_model", "both_models"])
    def test_a_cache_holds_the_numbers_that_the_models_give(self, tmp_path, in_memory, capsys):
        cfg = config(tmp_path, cached_activations_path=str(tmp_path / "cache"))
        live = slc.CrosscoderTrainingRunner(cfg).pair_check
        capsys.readouterr()
        write_run_cache(cfg, dtype="float32", in_memory=in_memory)
        assert live.lines() in capsys.readouterr().err
        assert slc.CrosscoderTrainingRunner(cfg.replace(use_cached_activations=True)).pair_check == live

    def test_an_older_cache_tells_the_size_of_the_difference(self, tmp_path):
        cfg = config(tmp_path, cached_activations_path=str(tmp_path / "cache"))
        for cache in write_run_cache(cfg, dtype="float32"):
            manifest = cache.manifest
            manifest.pair_check = None
            (cache.path / "manifest.json").unlink()
            manifest.save(cache.path)
        cached = slc.CrosscoderTrainingRunner(cfg.replace(use_cached_activations=True)).pair_check
        live = slc.CrosscoderTrainingRunner(cfg).pair_check
        assert cached.n_tokens == live.n_tokens
        assert cached.difference == pytest.approx(live.difference, rel=1e-4)
        assert (cached.kl_nats, cached.position_0_norm) == (None, (None, None))

    def test_predictions_are_compared_on_evenly_spread_tokens_if_there_are_many(self):
        tokens = some_tokens(8, 200)
        chosen = LookedAt.of(tokens, torch.ones_like(tokens, dtype=torch.bool), None).predicting
        counts = chosen.sum(dim=1)
        assert 128 < int(chosen.sum()) <= 256
        assert int(counts.max() - counts.min()) <= 1
