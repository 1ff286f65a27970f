"""What the base model reads in place of the chat model's control tokens, and that nobody else does."""

import pytest
import torch
from transformers import AutoTokenizer

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import TINY_HOOK, load_tiny_model, tiny_tokenizer
from tests.models.small_models import gemma2, save_pair

TOKENIZER = tiny_tokenizer()
SOT, EOT, PAD, THE = (TOKENIZER.convert_tokens_to_ids(token) for token in ("<sot>", "<eot>", "<pad>", "the"))
REPLACEMENTS = {"<sot>": "<pad>", "<eot>": "the"}
TOKENS = torch.tensor([[1, SOT, 20, 30, EOT], [1, 21, SOT, SOT, 31]])
READ = torch.tensor([[1, PAD, 20, 30, THE], [1, 21, PAD, PAD, 31]])


@pytest.fixture(scope="module")
def pairs():
    """A pair without and one with replacements, of models of their own."""
    return (
        slc.HookedModelPair(load_tiny_model("tiny-base"), load_tiny_model("tiny-chat")),
        slc.HookedModelPair(
            load_tiny_model("tiny-base"), load_tiny_model("tiny-chat"), token_replacements=REPLACEMENTS
        ),
    )


def test_replaced_ids_reach_only_the_base_whoever_runs_it(pairs):
    plain, replacing = pairs
    with torch.no_grad():
        for run in (
            lambda pair, tokens: pair.activations(tokens, TINY_HOOK).split(96, dim=-1),
            lambda pair, tokens: pair(tokens).unbind(dim=-2),
            lambda pair, tokens: (pair.base(tokens), pair.chat(tokens)),
        ):
            base, chat = run(replacing, TOKENS)
            assert torch.equal(base, run(plain, READ)[0])
            assert torch.equal(chat, run(plain, TOKENS)[1])
            assert not torch.equal(base, run(plain, TOKENS)[0])


def test_losses_are_those_of_the_tokens_that_were_given(pairs):
    plain, replacing = pairs
    with torch.no_grad():
        log_p = plain.base(READ).log_softmax(dim=-1)[:, :-1]
        expected = -log_p.gather(-1, TOKENS[:, 1:, None])[..., 0]
        loss = replacing(TOKENS, return_type="loss", loss_per_token=True)[..., 0]
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("model_class_name", ["TransformerBridge", "AutoModelForCausalLM"])
def test_every_kind_of_model_reads_the_replacements(tmp_path, model_class_name):
    folders = save_pair(tmp_path, gemma2)
    hook = {"TransformerBridge": "blocks.1.hook_resid_post", "AutoModelForCausalLM": "model.layers.1"}[model_class_name]
    plain, replacing = (
        slc.HookedModelPair.from_pretrained(*folders, model_class_name=model_class_name, token_replacements=table)
        for table in (None, REPLACEMENTS)
    )
    base, chat = replacing.activations(TOKENS, hook).split(32, dim=-1)
    torch.testing.assert_close(base, plain.activations(READ, hook)[..., :32])
    torch.testing.assert_close(chat, plain.activations(TOKENS, hook)[..., 32:])


def folders_with_other_tokens(tmp_path, changed):
    """A saved pair whose base model has other tokens in the place of some."""
    folders = save_pair(tmp_path, gemma2)
    path = tmp_path / "base" / "tokenizer.json"
    text = path.read_text()
    for token, other in changed.items():
        text = text.replace(f'"{token}"', f'"{other}"')
    path.write_text(text)
    AutoTokenizer.from_pretrained(path.parent)
    return folders


def test_tokenizers_that_differ_in_replaced_tokens_alone_are_a_pair(tmp_path):
    folders = folders_with_other_tokens(tmp_path, {"<sot>": "<unused0>"})
    options = {"model_class_name": "TransformerBridge"}
    with pytest.raises(ValueError, match=r"id 2 is '<unused0>' in the first and '<sot>' .* token_replacements"):
        slc.HookedModelPair.from_pretrained(*folders, **options)
    replacing = slc.HookedModelPair.from_pretrained(*folders, token_replacements={"<sot>": "<unused0>"}, **options)
    assert replacing.token_replacements == {"<sot>": "<unused0>"}
    elsewhere = folders_with_other_tokens(tmp_path / "b", {"<sot>": "<unused0>", "the": "die"})
    with pytest.raises(ValueError, match="'die' in the first and 'the'"):
        slc.HookedModelPair.from_pretrained(*elsewhere, token_replacements={"<sot>": "<unused0>"}, **options)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"<start_of_turn>": "the"}, "'<start_of_turn>' is not in the chat model's vocabulary"),
        ({"<sot>": "two words"}, "'two words' is not in the base model's vocabulary"),
        ({"<sot>": "<eot>", "<eot>": "the"}, "'<sot>' becomes '<eot>', which is itself replaced"),
    ],
)
def test_what_cannot_be_replaced_is_refused(table, message):
    with pytest.raises(ValueError, match=message):
        slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat", token_replacements=table)


def test_no_family_replaces_a_token_by_a_replaced_one_and_gemma_2_none():
    for table in slc.models.TOKEN_REPLACEMENTS.values():
        assert not set(table) & set(table.values())
    assert slc.models.TOKEN_REPLACEMENTS["gemma-2"] == {}
