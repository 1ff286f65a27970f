"""Laws of loaded PeftModels: one copy of the weights, the numbers of the named adapter, and reasons for refusals."""

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from sae_lens.load_model import HookedProxyLM
from transformers import AutoModelForCausalLM

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models import wrapping
from sae_lens_crosscoder.models.adapters import AdapterView
from sae_lens_crosscoder.models.loading import load_tokenizer
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.models.adapters import save_adapter, save_base
from tests.models.small_models import some_tokens

HOOK, PROXY_HOOK = "blocks.3.hook_resid_post", "model.layers.3"
TOKENS = some_tokens(d_vocab=150)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapters")
    base = save_base(folder / "base")
    return base, save_adapter(folder / "adapter", base)


def load(folders):
    base = AutoModelForCausalLM.from_pretrained(folders[0])
    return base, PeftModel.from_pretrained(base, folders[1])


def named(folders, model_class_name="TransformerBridge"):
    names = (folders[0], f"{folders[0]}+adapter={folders[1]}")
    return slc.HookedModelPair.from_pretrained(*names, model_class_name=model_class_name)


class TestOneCopy:
    @pytest.mark.parametrize("given", ["wrapped base", "None", "get_base_model"])
    def test_base_and_chat_are_the_adapter_off_and_on(self, folders, given):
        base, chat = load(folders)
        first = {"wrapped base": base, "None": None, "get_base_model": chat.get_base_model()}[given]
        pair = slc.HookedModelPair(first, chat)
        expected = named(folders)
        assert torch.equal(pair.activations(TOKENS, HOOK), expected.activations(TOKENS, HOOK))
        assert torch.equal(pair(TOKENS), expected(TOKENS))
        assert all(isinstance(model, AdapterView) for model in pair.members)
        assert pair.base.shared is pair.chat.shared
        assert pair.shared_parameters == []

    def test_the_adapter_may_be_the_base(self, folders):
        base, chat = load(folders)
        turned = slc.HookedModelPair(chat, base)(TOKENS)
        assert torch.equal(turned.flip(2), named(folders)(TOKENS))

    def test_as_proxies(self, folders, monkeypatch):
        monkeypatch.setattr(wrapping, "_has_bridge", lambda model: False)
        pair = slc.HookedModelPair(*load(folders))
        assert all(isinstance(model, HookedProxyLM) for model in pair.members)
        expected = named(folders, "AutoModelForCausalLM")
        assert torch.equal(pair.activations(TOKENS, PROXY_HOOK), expected.activations(TOKENS, PROXY_HOOK))

    def test_another_copy_of_the_base_is_a_model_of_its_own(self, folders):
        pair = slc.HookedModelPair(AutoModelForCausalLM.from_pretrained(folders[0]), load(folders)[1])
        torch.testing.assert_close(pair(TOKENS), named(folders)(TOKENS))
        assert not isinstance(pair.base, AdapterView)


class TestRefusals:
    def test_what_cannot_be_switched_off_says_why(self, folders):
        def adapted(**options):
            base = AutoModelForCausalLM.from_pretrained(folders[0])
            return get_peft_model(base, LoraConfig(**{"r": 2, "target_modules": ["q_proj"], **options}))

        merged = load(folders)[1]
        merged.merge_adapter()
        prompt = get_peft_model(
            AutoModelForCausalLM.from_pretrained(folders[0]),
            PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2),
        )
        cases = [
            (merged, "unmerge_adapter"),
            (prompt, "peft_type='PROMPT_TUNING'"),
            (adapted(use_dora=True), "use_dora=True"),
            (adapted(target_modules=["embed_tokens"]), "embedding"),
        ]
        for model, message in cases:
            with pytest.raises(ValueError, match=message):
                slc.HookedModelPair(None, model)

    def test_two_adapters_wrapped_around_one_model(self, folders):
        base, first = load(folders)
        second = get_peft_model(base, LoraConfig(r=2, target_modules=["v_proj"]), adapter_name="second")
        with pytest.raises(ValueError, match="Two PeftModels wrap the same base model"):
            slc.HookedModelPair(first, second)

    def test_none_without_an_adapter(self, folders):
        with pytest.raises(ValueError, match="A NoneType cannot be a member"):
            slc.HookedModelPair(None, AutoModelForCausalLM.from_pretrained(folders[0]))


class TestTokenizer:
    def with_tokenizer(self, folders, tmp_path, tokenizer):
        adapter = save_adapter(tmp_path / "adapter", folders[0])
        tokenizer.save_pretrained(adapter)
        return f"{folders[0]}+adapter={adapter}"

    def test_the_adapters_own_is_the_chat_models(self, folders, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = "{{ messages[0]['content'] }}"
        chat = self.with_tokenizer(folders, tmp_path, tokenizer)
        pair = slc.HookedModelPair.from_pretrained(folders[0], chat)
        assert pair.tokenizer.chat_template == tokenizer.chat_template != pair.base.tokenizer.chat_template
        assert load_tokenizer(chat, "TransformerBridge").chat_template == tokenizer.chat_template
        assert (
            load_tokenizer(f"{folders[0]}+adapter={folders[1]}", "TransformerBridge").chat_template
            != tokenizer.chat_template
        )

    def test_other_ids_are_refused(self, folders, tmp_path):
        tokenizer = tiny_tokenizer()
        tokenizer.add_tokens(["<new>"])
        chat = self.with_tokenizer(folders, tmp_path, tokenizer)
        with pytest.raises(ValueError, match=r"The models' tokenizers differ: id .* '<new>' in the second"):
            slc.HookedModelPair.from_pretrained(folders[0], chat)
