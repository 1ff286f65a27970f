"""Every token of a conversation has the owner that the chat template gives it."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import dialogues, tiny_tokenizer

GEMMA = (
    "{{ bos_token }}{% for m in messages %}{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role'])"
    " + '\n' + m['content'] | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LLAMA = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}{{ '<|start_header_id|>' + m['role'] +"
    " '<|end_header_id|>\n\n' + m['content'] | trim + '<|eot_id|>' }}{% endfor %}"
)
CHATML = "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
CONTROL = {
    "gemma": ("<start_of_turn>", "<end_of_turn>"),
    "llama": ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    "chatml": ("<|im_start|>", "<|im_end|>"),
}
TEMPLATES = {"gemma": GEMMA, "llama": LLAMA, "chatml": CHATML}
MESSAGES = [
    {"role": "user", "content": "user model"},  # contents that look like role names
    {"role": "assistant", "content": "  yes it is "},
    {"role": "user", "content": "go"},
]


def tokenizer(family):
    """Words, line breaks and control tokens, one token each."""
    words = ["<unk>", "<bos>", "user", "model", "assistant", "yes", "it", "is", "go", "\n", " ", *CONTROL[family]]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+| "), behavior="isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<bos>")
    fast.add_special_tokens({"additional_special_tokens": list(CONTROL[family])})
    fast.chat_template = TEMPLATES[family]
    return fast


def words(tok, ids):
    return [word for word in tok.convert_ids_to_tokens(ids.tolist()) if word != " "]


@pytest.mark.parametrize("family", TEMPLATES)
def test_contents_belong_to_their_messages_and_the_rest_to_the_template(family):
    tok = tokenizer(family)
    chat = slc.chat_tokens(tok, MESSAGES)
    assert chat.input_ids.tolist() == tok.apply_chat_template(MESSAGES, return_dict=False)
    assert words(tok, chat.input_ids[chat.message == 0]) == ["user", "model"]
    assert words(tok, chat.input_ids[chat.role("assistant")]) == ["yes", "it", "is"]
    assert words(tok, chat.input_ids[chat.role("user")]) == ["user", "model", "go"]
    template = words(tok, chat.input_ids[chat.template])
    assert set(template) <= {*CONTROL[family], "\n", "user", "model", "assistant"}
    assert template.count(CONTROL[family][0]) == 3
    assert chat.bos.sum() == (0 if family == "chatml" else 1)
    masks = torch.stack([chat.bos, chat.template, chat.role("user"), chat.role("assistant")])
    assert (masks.sum(dim=0) == 1).all()


def test_the_generation_prompt_is_template():
    tok = tokenizer("gemma")
    chat = slc.chat_tokens(tok, MESSAGES[:1], add_generation_prompt=True)
    assert words(tok, chat.input_ids[-3:]) == ["<start_of_turn>", "model", "\n"]
    assert chat.template[-3:].all()


def test_the_built_in_pairs_conversations():
    tok = tiny_tokenizer()
    for messages in dialogues(50, seed=3):
        chat = slc.chat_tokens(tok, messages)
        assert chat.input_ids.tolist() == tok.apply_chat_template(messages, tokenize=True, return_dict=False)
        for index, message in enumerate(messages):
            assert tok.decode(chat.input_ids[chat.message == index]) == message["content"]
        assert chat.bos.tolist() == [True] + [False] * (len(chat.bos) - 1)


def test_a_template_that_rewrites_contents_and_a_missing_one_are_refused():
    tok = tokenizer("chatml")
    tok.chat_template = CHATML.replace("m['content']", "m['content'] | replace('user', 'you')")
    with pytest.raises(ValueError, match="does not write the message 'user model' unchanged"):
        slc.chat_tokens(tok, MESSAGES)
    tok.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        slc.chat_tokens(tok, MESSAGES)
