"""A pair takes names, folders, hooked models and Hugging Face models, and says why it cannot use anything else."""

import logging

import pytest
import torch
from sae_lens.load_model import HookedProxyLM
from torch import nn
from transformer_lens.model_bridge import TransformerBridge
from transformers import AutoModelForCausalLM, GPT2Config, GPT2ForSequenceClassification, T5Config
from transformers import T5ForConditionalGeneration as T5

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models import wrapping
from sae_lens_crosscoder.models.loading import load_model, load_tokenizer, usable_model_class
from sae_lens_crosscoder.models.sizes import model_size
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.models.small_models import gemma2, llama, random_hooked_transformer, save_pair, some_tokens

HOOK, PROXY_HOOK = "blocks.1.hook_resid_post", "model.layers.1"


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("models"), gemma2)


def hidden_states(tokens):
    states = [gemma2(noise=n)(tokens, output_hidden_states=True).hidden_states[2] for n in (0.0, 0.02)]
    return torch.cat(states, dim=-1)


class TestFolders:
    def test_a_folder_is_loaded_with_the_bridge_and_one_line_says_so(self, folders, caplog):
        pair = slc.HookedModelPair.from_pretrained(*folders)
        assert [type(model) for model in pair.members] == [TransformerBridge, TransformerBridge]
        tokens = some_tokens(d_vocab=200)
        assert torch.equal(pair.activations(tokens, HOOK), hidden_states(tokens))
        lines = [record.message for record in caplog.records if "TransformerBridge" in record.message]
        assert len(lines) == 1
        assert f"HookedTransformer cannot load the local folder {folders[0]!r}" in lines[0]

    def test_paths_are_names(self, folders, tmp_path):
        pair = slc.HookedModelPair.from_pretrained(*map(type(tmp_path), folders))
        assert pair.model_names == folders

    def test_the_arguments_that_saelens_adds_for_hooked_transformer_are_left_out(self, folders):
        load_model(folders[0], "cpu", "float32", "HookedTransformer", {"center_writing_weights": False})
        with pytest.raises(ValueError, match="has no fold_ln=True"):
            load_model(folders[0], "cpu", "float32", "HookedTransformer", {"fold_ln": True})

    def test_tokenizer_and_size_are_those_of_the_model_that_is_loaded(self, folders, caplog):
        model = load_model(folders[0], "cpu", "float32", "HookedTransformer", {})
        caplog.clear()
        assert load_tokenizer(folders[0], "HookedTransformer").get_vocab() == model.tokenizer.get_vocab()
        size = model_size(folders[0], HOOK, "HookedTransformer")
        assert size == model_size(folders[0], HOOK, "TransformerBridge")
        assert size.n_params == sum(weights.numel() for weights in model.parameters())

    def test_named_models_of_a_cache_may_be_folders(self, folders, tmp_path):
        tokens = some_tokens(n_prompts=4, d_vocab=200)
        cache = slc.cache_activations(tmp_path / "cache", folders, tokens, HOOK)
        assert len(cache) == tokens.numel()

    def test_a_run_reads_folders_with_the_default_class(self, folders):
        cfg = slc.CrosscoderRunnerConfig(
            sae=slc.BatchTopKCrosscoderTrainingConfig(d_model=32, d_sae=64, k=4),
            model_name=folders[0],
            chat_model_name=folders[1],
            hook_name=HOOK,
            dataset_path="tiny-mix",
            context_size=16,
            training_tokens=512,
            train_batch_size_tokens=64,
            store_batch_size_prompts=4,
            n_held_out_rows=4,
            lr_warm_up_steps=0,
            checkpoint_path=None,
            output_path=None,
        )
        assert cfg.model_class_name == "HookedTransformer"
        runner = slc.CrosscoderTrainingRunner(cfg)
        assert isinstance(runner.pair.chat, TransformerBridge)

    def test_a_missing_folder_is_refused(self):
        with pytest.raises(ValueError, match=r"no model folder at './my-modle'"):
            slc.HookedModelPair.from_pretrained("./my-modle", "tiny-chat")


class TestNames:
    def test_both_models_of_a_pair_get_the_class_that_loads_both(self, folders):
        assert usable_model_class(["google/gemma-2-2b", folders[0]], "HookedTransformer") == "TransformerBridge"
        assert usable_model_class(["google/gemma-2-2b", "gemma-2-2b-it"], "HookedTransformer") == "HookedTransformer"
        assert usable_model_class(["tiny-base", "tiny-chat+jitter=0.1"], "HookedTransformer") == "HookedTransformer"
        assert usable_model_class([folders[0]], "AutoModelForCausalLM") == "AutoModelForCausalLM"

    def test_a_hub_model_that_transformerlens_does_not_list_gets_the_bridge(self, caplog):
        assert usable_model_class(["me/my-tune", "tiny-base"], "HookedTransformer") == "TransformerBridge"
        assert "HookedTransformer does not know 'me/my-tune'" in caplog.text


class TestHuggingFaceModels:
    def test_they_are_read_as_transformers_reads_them(self, caplog):
        caplog.set_level(logging.WARNING)
        base, chat = gemma2(), gemma2(noise=0.02).train()
        tokenizer, tokens = tiny_tokenizer(), some_tokens(d_vocab=200)
        pair = slc.HookedModelPair(base, chat, tokenizer=tokenizer)
        assert torch.equal(pair.activations(tokens, HOOK), hidden_states(tokens))
        assert pair.tokenizer.get_vocab() == tokenizer.get_vocab()
        assert not pair.chat.training
        assert pair.chat.cfg.device == "cpu"

    def test_the_tokenizer_is_found_where_the_model_was_loaded_from(self, folders):
        models = [AutoModelForCausalLM.from_pretrained(folder) for folder in folders]
        pair = slc.HookedModelPair(*models)
        assert pair.tokenizer.get_vocab() == tiny_tokenizer().get_vocab()
        with pytest.raises(ValueError, match=r"No tokenizer found for the Gemma2ForCausalLM .*tokenizer="):
            slc.HookedModelPair(gemma2(), gemma2())

    def test_they_pair_with_models_that_have_hooks(self, folders):
        tokens, tokenizer = some_tokens(d_vocab=200), tiny_tokenizer()
        options = {"device": "cpu", "dtype": "float32"}
        for class_name, hook in (("TransformerBridge", HOOK), ("AutoModelForCausalLM", PROXY_HOOK)):
            base = load_model(folders[0], options["device"], options["dtype"], class_name, {})
            pair = slc.HookedModelPair(base, gemma2(noise=0.02), tokenizer=tokenizer)
            assert torch.equal(pair.activations(tokens, hook), hidden_states(tokens))

    def test_models_without_a_bridge_are_wrapped_by_saelens(self, monkeypatch):
        monkeypatch.setattr(wrapping, "_has_bridge", lambda model: "Llama" not in type(model).__name__)
        tokens = some_tokens(d_vocab=200)
        pair = slc.HookedModelPair(llama(), llama(noise=0.02), tokenizer=tiny_tokenizer())
        assert [type(model) for model in pair.members] == [HookedProxyLM, HookedProxyLM]
        expected = [llama(noise=n)(tokens, output_hidden_states=True).hidden_states[2] for n in (0.0, 0.02)]
        assert torch.equal(pair.activations(tokens, PROXY_HOOK), torch.cat(expected, dim=-1))

    def test_a_model_that_is_passed_twice_is_wrapped_once(self):
        model = gemma2()
        pair = slc.HookedModelPair(model, model, tokenizer=tiny_tokenizer())
        assert pair.base is pair.chat


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "message"),
        [
            (lambda: "google/gemma-2-2b", r"the name 'google/gemma-2-2b', .* HookedModelPair.from_pretrained"),
            (lambda: nn.Linear(2, 2), r"A Linear cannot be a member .* Pass a HookedTransformer, TransformerBridge"),
            (lambda: tiny_tokenizer(), "cannot be a member of a pair"),
            (lambda: gemma2().model, r"A Gemma2Model gives no logits. Load the model with AutoModelForCausalLM"),
            (
                lambda: GPT2ForSequenceClassification(GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=9)),
                "A GPT2ForSequenceClassification gives no logits",
            ),
            (
                lambda: T5(T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)),
                "has an encoder and a decoder",
            ),
            (
                lambda: slc.HookedModelPair(*[random_hooked_transformer(8, seed=s) for s in (1, 2)]),
                r"A HookedModelPair cannot be .* pair.base and pair.chat",
            ),
        ],
    )
    def test_what_cannot_be_used_is_named_with_the_way_out(self, model, message):
        with pytest.raises(ValueError, match=message):
            slc.HookedModelPair(random_hooked_transformer(8, seed=1), model())

    def test_loaded_models_do_not_go_to_from_pretrained(self):
        with pytest.raises(ValueError, match=r"got a HookedTransformer. Pass loaded models to HookedModelPair"):
            slc.HookedModelPair.from_pretrained("tiny-base", random_hooked_transformer(8, seed=1))

    def test_models_without_a_common_hook_are_refused(self):
        proxy = HookedProxyLM(gemma2(), tiny_tokenizer())
        with pytest.raises(ValueError, match=r"HookedTransformer and HookedProxyLM\) have no hook name in common"):
            slc.HookedModelPair(random_hooked_transformer(8, seed=1), proxy)
