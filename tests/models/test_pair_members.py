"""Laws of a pair's construction: widths, several models, names of models, tokenizers, and one look at the hooks."""

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformer_lens.model_bridge import TransformerBridge
from transformers import PreTrainedTokenizerFast

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.outputs import stacked_outputs
from tests.models.small_models import gemma2, random_hooked_transformer, save_pair, some_tokens
from tests.models.test_pair import reverse, scaled


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


class TestMembers:
    def test_models_of_different_width(self):
        narrow, wide = random_hooked_transformer(16, seed=1), random_hooked_transformer(24, seed=2)
        pair = slc.HookedModelPair(narrow, wide)
        tokens, name = some_tokens(), "blocks.0.hook_resid_post"
        assert pair.layout_at(name).d_models == (16, 24)
        parts = [model.run_with_cache(tokens, names_filter=[name])[1][name] for model in (narrow, wide)]
        assert torch.equal(pair.activations(tokens, name), torch.cat(parts, dim=-1))
        edited = pair.run_with_hooks(tokens, fwd_hooks=[(name, reverse)])
        stacked = torch.cat(parts, dim=-1).flip(-1)
        into = stacked[..., :16], stacked[..., 16:]
        for m, model in enumerate((narrow, wide)):
            own = model.run_with_hooks(tokens, fwd_hooks=[(name, lambda value, hook, new=into[m]: new)])
            assert torch.equal(edited[:, :, m], own)

    def test_a_model_paired_with_itself_gives_the_same_twice(self):
        model = random_hooked_transformer(16, seed=1)
        pair = slc.HookedModelPair(model, model)
        tokens, name = some_tokens(), "blocks.1.hook_resid_post"
        left, right = pair.activations(tokens, name).chunk(2, dim=-1)
        assert torch.equal(left, right)
        edited = pair.run_with_hooks(tokens, fwd_hooks=[(name, scaled(2.0))])
        expected = model.run_with_hooks(tokens, fwd_hooks=[(name, scaled(2.0))])
        assert torch.equal(edited, torch.stack([expected, expected], dim=2))

    def test_three_models(self):
        members = [random_hooked_transformer(width, seed=width) for width in (16, 8, 24)]
        pair = slc.HookedModelPair(*members)
        tokens, name = some_tokens(), "blocks.0.hook_mlp_out"
        parts = [model.run_with_cache(tokens, names_filter=[name])[1][name] for model in members]
        assert torch.equal(pair.activations(tokens, name), torch.cat(parts, dim=-1))
        assert pair(tokens).shape == (2, 12, 3, 50)
        assert pair(tokens, return_type="loss").shape == (3,)
        assert (pair.base, pair.chat) == (members[0], members[2])

    def test_pairing_bridges_reads_the_hook_dict_once_per_model(self, tmp_path, monkeypatch):
        bridges = [TransformerBridge.boot_transformers(folder, device="cpu") for folder in save_pair(tmp_path, gemma2)]
        build, readers = TransformerBridge.hook_dict.fget, []

        def hook_dict(bridge):
            readers.append(bridge)
            return build(bridge)

        monkeypatch.setattr(TransformerBridge, "hook_dict", property(hook_dict))
        pair = slc.HookedModelPair(*bridges)
        assert readers == bridges
        assert len(pair.hook_dict) > 50

    def test_one_model_has_no_chat_model_and_none_is_refused(self):
        alone = slc.HookedModelPair(random_hooked_transformer(16, seed=1))
        assert alone.base is alone.members[-1]
        with pytest.raises(ValueError, match="There is no chat model: this is one model"):
            _ = alone.chat
        with pytest.raises(ValueError, match="Got no models"):
            slc.HookedModelPair()

    def test_vocabularies_of_different_size_are_compared_over_the_common_ids(self):
        base, chat = (random_hooked_transformer(16, seed=seed, d_vocab=size) for seed, size in ((1, 50), (2, 60)))
        pair, tokens = slc.HookedModelPair(base, chat), some_tokens()
        logits, losses = pair(tokens, return_type="both", loss_per_token=True)
        for m, model in enumerate((base, chat)):
            alone = model(tokens)[..., :50]
            assert torch.equal(logits[:, :, m], alone)
            expected = -alone.log_softmax(-1)[:, :-1].gather(-1, tokens[:, 1:, None]).squeeze(-1)
            torch.testing.assert_close(losses[..., m], expected)
        table = slc.causal.token_kl(pair, tokens[:1])
        p, q = (logits[0, :, m].double().log_softmax(-1) for m in (1, 0))
        expected = (p.exp() * (p - q)).sum(-1)
        assert table.chat_from_base.tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert slc.causal.kl_between_models(pair, tokens)[0].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
        assert slc.causal.next_tokens(pair, tokens[:1], 3).index.max() < 50

    def test_a_loss_of_an_id_that_one_model_lacks_is_refused(self):
        tokens = torch.tensor([[3, 55]])
        outputs = [torch.zeros(1, 2, size) for size in (50, 60)]
        assert stacked_outputs(outputs, tokens, "logits", False, False).shape == (1, 2, 2, 50)
        with pytest.raises(ValueError, match="the id 55, but the models have only the ids below 50 in common"):
            stacked_outputs(outputs, tokens, "loss", False, False)

    def test_only_hooks_that_all_models_have_are_offered(self):
        hooked = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat").base
        narrow = random_hooked_transformer(16, seed=1)  # two layers, where the other has four
        pair = slc.HookedModelPair(hooked, narrow)
        assert "blocks.1.hook_resid_post" in pair.hook_dict
        with pytest.raises(ValueError, match="no common hook"):
            pair.validate_hook("blocks.3.hook_resid_post")


class TestProvenance:
    def test_a_crosscoder_of_the_same_models_is_accepted(self):
        pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=s) for s in (1, 2)], model_names=("a", "b"))
        pair.validate_trained_on("a", "b")
        pair.validate_trained_on(None, None)  # says nothing, so nothing contradicts

    @pytest.mark.parametrize("names", [("a", "c"), ("b", "a")])
    def test_a_crosscoder_of_other_models_or_another_order_is_refused(self, names):
        pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=s) for s in (1, 2)], model_names=("a", "b"))
        with pytest.raises(ValueError, match=f"trained on {names[0]} and {names[1]}, but the pair is a and b"):
            pair.validate_trained_on(*names)

    def test_a_pair_without_names_accepts_any_crosscoder(self):
        pair = slc.HookedModelPair(*[random_hooked_transformer(8, seed=s) for s in (1, 2)])
        pair.validate_trained_on("a", "b")

    def test_from_pretrained_remembers_the_names(self):
        pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
        assert pair.model_names == ("tiny-base", "tiny-null")


def word_tokenizer(words, *replacements):
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.normalizer = normalizers.Sequence([normalizers.Replace(*pair) for pair in replacements])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token=words[0])


class TestTokenizers:
    def with_tokenizer(self, tokenizer, seed):
        model = random_hooked_transformer(8, seed=seed)
        model.tokenizer = tokenizer
        return model

    def test_different_vocabularies_are_refused_with_the_first_differing_token(self):
        words = ["<unk>", "the", "cat", "sat"]
        first, other = word_tokenizer(words), word_tokenizer(["<unk>", "the", "dog", "ran"])
        with pytest.raises(ValueError, match="id 2 is 'cat' in the first and 'dog' in the second"):
            slc.HookedModelPair(self.with_tokenizer(first, 1), self.with_tokenizer(other, 2))

    def test_a_missing_token_is_refused(self):
        first, other = word_tokenizer(["<unk>", "the", "cat"]), word_tokenizer(["<unk>", "the"])
        with pytest.raises(ValueError, match="id 2 is 'cat' in the first and None in the second"):
            slc.HookedModelPair(self.with_tokenizer(first, 1), self.with_tokenizer(other, 2))

    @pytest.mark.parametrize(
        ("replacement", "difference"),
        [
            (("cat", "sat"), "the same text gives 'cat' and 'sat' at position 1"),
            ((" sat", ""), "the same text gives 3 and 2 tokens"),
        ],
    )
    def test_equal_vocabularies_that_read_text_differently_are_refused(self, replacement, difference):
        words = ["<unk>", "the", "cat", "sat"]
        first, other = word_tokenizer(words), word_tokenizer(words, replacement)
        with pytest.raises(ValueError, match=difference):
            slc.HookedModelPair(self.with_tokenizer(first, 1), self.with_tokenizer(other, 2))

    def test_equal_tokenizers_pass_and_the_chat_models_is_kept(self):
        words = ["<unk>", "the", "cat", "sat"]
        first, other = word_tokenizer(words), word_tokenizer(words)
        pair = slc.HookedModelPair(self.with_tokenizer(first, 1), self.with_tokenizer(other, 2))
        assert pair.tokenizer is other

    def test_an_unknown_model_class_is_refused_with_the_valid_ones(self):
        with pytest.raises(ValueError, match=r"'HookedMamba' is not one of .*HookedTransformer"):
            slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat", model_class_name="HookedMamba")
