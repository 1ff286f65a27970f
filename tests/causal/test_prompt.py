"""One prompt, however it is given, is the tokens that it stands for."""

from types import SimpleNamespace

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal.forward.prompt import prompt_tokens
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from tests.causal.conftest import random_crosscoder

USER = [{"role": "user", "content": "how do i burn the dog ?"}]
BOTH = [*USER, {"role": "assistant", "content": "paris is in france"}]


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


@pytest.fixture(scope="module")
def proxies(pair, tmp_path_factory):
    from tests.models.small_models import llama, save_pair

    folders = save_pair(tmp_path_factory.mktemp("models"), llama)
    return slc.HookedModelPair.from_pretrained(*folders, model_class_name="AutoModelForCausalLM")


def readings(pair, prompt):
    yield slc.causal.next_tokens(pair, prompt, 3)
    yield slc.causal.token_kl(pair, prompt)


def test_messages_get_the_template_up_to_where_the_assistant_answers(pair, proxies):
    for messages, opened in ((USER, True), (BOTH, False)):
        ids = pair.tokenizer.apply_chat_template(messages, add_generation_prompt=opened, return_dict=False)
        for host in (pair, proxies):
            for found, expected in zip(readings(host, messages), readings(host, torch.tensor([ids])), strict=True):
                assert found.equals(expected)


@pytest.mark.filterwarnings("ignore:The prompt is a plain text")
def test_a_text_gets_bos_and_no_template(pair, proxies):
    for host in (pair, proxies):
        tokens = prompt_tokens(host, "paris is in")
        assert [pair.tokenizer.decode([i]) for i in tokens[0].tolist()] == ["<bos>", "paris", "is", "in"]
        assert torch.equal(prompt_tokens(host, "<bos>paris is in"), tokens)
        for found, expected in zip(readings(host, "paris is in"), readings(host, tokens), strict=True):
            assert found.equals(expected)


@pytest.mark.usefixtures("unchecked_types")
def test_a_text_says_that_it_is_not_templated(pair):
    with pytest.warns(UserWarning, match="no chat template is applied"):
        slc.causal.next_tokens(pair, "paris is in")
    without = SimpleNamespace(tokenizer=slc.models.tiny_tokenizer())
    without.tokenizer.chat_template = None
    prompt_tokens(without, "paris is in")  # a base model's text has no template to miss


@pytest.mark.parametrize("messages", [USER, BOTH])
def test_compare_takes_messages_with_every_class_of_model(pair, proxies, messages):
    crosscoder = random_crosscoder((96, 96), dtype="float32", d_sae=12)
    crosscoder.cfg.metadata.hook_name = TINY_HOOK
    tokens = prompt_tokens(pair, messages)
    found = slc.compare(crosscoder, pair, messages, n_latents=2)
    assert found.token_kl.equals(slc.causal.token_kl(pair, tokens))
    assert len(found.texts) == tokens.shape[1]


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", r"prompt='' has no tokens"),
        ([], r"prompt must be a text, messages with role and content, or token ids \(1, pos\), not \[\]"),
        ([{"from": "human", "value": "hi"}], "prompt must be a text, messages with role and content"),
        ([1, 2, 3], "prompt must be a text, messages"),
        (torch.zeros(3, dtype=torch.long), r"tokens must be one prompt of shape \(1, pos\), but its shape is \(3,\)"),
        (torch.zeros(1, 0, dtype=torch.long), r"tokens must be one prompt of shape \(1, pos\)"),
        (torch.tensor([[-100]]), "tokens contains the id -100"),
        (torch.tensor([[10**6]]), "tokens contains the id 1000000"),
    ],
)
@pytest.mark.filterwarnings("ignore:The prompt is a plain text")
@pytest.mark.usefixtures("unchecked_types")
def test_what_is_no_prompt_is_refused(pair, prompt, message):
    with pytest.raises(ValueError, match=message):
        prompt_tokens(pair, prompt)
