"""Every token of a conversation has the owner that the chat template gives it."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
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
INST = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] | trim + ' [/INST]'"
    " }}{% else %}{{ ' ' + m['content'] | trim + eos_token }}{% endif %}{% endfor %}"
)
TEMPLATES = {"gemma": GEMMA, "llama": LLAMA, "chatml": CHATML}
MESSAGES = [
    {"role": "user", "content": "user model"},  # contents that look like role names
    {"role": "assistant", "content": "  yes it is "},
    {"role": "user", "content": "go"},
]

BETWEEN = {  # all that each template adds to MESSAGES, but for the beginning-of-sequence token
    "gemma": [
        *("<start_of_turn>", "user", "\n", "<end_of_turn>", "\n"),
        *("<start_of_turn>", "model", "\n", "<end_of_turn>", "\n"),
        *("<start_of_turn>", "user", "\n", "<end_of_turn>", "\n"),
    ],
    "llama": [
        *("<|start_header_id|>", "user", "<|end_header_id|>", "\n", "\n", "<|eot_id|>"),
        *("<|start_header_id|>", "assistant", "<|end_header_id|>", "\n", "\n", "<|eot_id|>"),
        *("<|start_header_id|>", "user", "<|end_header_id|>", "\n", "\n", "<|eot_id|>"),
    ],
    "chatml": [
        *("<|im_start|>", "user", "\n", "<|im_end|>", "\n"),
        *("<|im_start|>", "assistant", "\n", "<|im_end|>", "\n"),
        *("<|im_start|>", "user", "\n", "<|im_end|>", "\n"),
    ],
}


def tokenizer(family):
    """Words, line breaks and control tokens, one token each."""
    words = ["<unk>", "<bos>", "user", "model", "assistant", "yes", "it", "is", "go", "\n", " ", *CONTROL[family]]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n|\w+| "), behavior="isolated")
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<bos>")
    fast.add_special_tokens({"additional_special_tokens": list(CONTROL[family])})
    fast.chat_template = TEMPLATES[family]
    return fast


def byte_level(chat_template, trim_offsets=False, bos="<s>", eos="</s>"):
    """One token a byte, as GPT-2's tokenizer would be without merges."""
    letters = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    backend = Tokenizer(models.BPE(vocab=letters, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos)
    fast.add_special_tokens({"additional_special_tokens": list(CONTROL["chatml"])})
    fast.chat_template = chat_template
    return fast


def contents(tok, chat):
    return [tok.decode(chat.input_ids[chat.message == index]) for index in range(len(chat.message_roles))]


def conversation(*texts):
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def words(tok, ids):
    return [word for word in tok.convert_ids_to_tokens(ids.tolist()) if word != " "]


@pytest.mark.parametrize("family", TEMPLATES)
def test_contents_belong_to_their_messages_and_the_rest_to_the_template(family):
    tok = tokenizer(family)
    chat = slc.data.chat_tokens(tok, MESSAGES)
    assert chat.input_ids.tolist() == tok.apply_chat_template(MESSAGES, return_dict=False)
    assert words(tok, chat.input_ids[chat.message == 0]) == ["user", "model"]
    assert words(tok, chat.input_ids[chat.role("assistant")]) == ["yes", "it", "is"]
    assert words(tok, chat.input_ids[chat.role("user")]) == ["user", "model", "go"]
    assert words(tok, chat.input_ids[chat.template]) == BETWEEN[family]
    assert words(tok, chat.input_ids[chat.response]) == ["yes", "it", "is", CONTROL[family][-1]]
    assert chat.bos.sum() == (0 if family == "chatml" else 1)
    masks = torch.stack([chat.bos, chat.template, chat.role("user"), chat.role("assistant")])
    assert (masks.sum(dim=0) == 1).all()


def test_the_generation_prompt_is_template():
    tok = tokenizer("gemma")
    chat = slc.data.chat_tokens(tok, MESSAGES[:1], add_generation_prompt=True)
    assert words(tok, chat.input_ids[-3:]) == ["<start_of_turn>", "model", "\n"]
    assert chat.template[-3:].all()


def test_the_built_in_pairs_conversations():
    tok = tiny_tokenizer()
    for messages in dialogues(50, seed=3):
        chat = slc.data.chat_tokens(tok, messages)
        assert chat.input_ids.tolist() == tok.apply_chat_template(messages, tokenize=True, return_dict=False)
        for index, message in enumerate(messages):
            assert tok.decode(chat.input_ids[chat.message == index]) == message["content"]
        assert chat.bos.tolist() == [True] + [False] * (len(chat.bos) - 1)


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_bytes_and_spaces_of_a_content_are_its_own(trim_offsets):
    tok = byte_level(CHATML, trim_offsets)
    texts = (" h\u00e9 \u65e5\u672c  ", "ok \n", "", "user", "\n")
    chat = slc.data.chat_tokens(tok, conversation(*texts))
    assert contents(tok, chat) == list(texts)
    turns = [f"<|im_start|>{role}\n<|im_end|>\n" for role in chat.message_roles]
    assert tok.decode(chat.input_ids[chat.template]) == "".join(turns)


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("text", ["yes ", " yes", "  yes \n", "yes", "", " ", "[INST] yes"])
def test_a_trimmed_content_is_told_from_the_templates_own_spaces(text, trim_offsets):
    tok = byte_level(INST, trim_offsets)
    messages = conversation(text, text, text)
    chat = slc.data.chat_tokens(tok, messages)
    assert chat.input_ids.tolist() == tok.apply_chat_template(messages, return_dict=False)
    assert contents(tok, chat) == [text.strip()] * 3
    assert tok.decode(chat.input_ids[chat.template]) == "[INST]  [/INST] </s>[INST]  [/INST]"


@pytest.mark.parametrize("trim", ["lstrip", "rstrip", "strip"])
def test_a_content_trimmed_on_one_side_keeps_the_other(trim):
    tok = byte_level(CHATML.replace("m['content']", f"m['content'].{trim}()"))
    texts = ("  yes \n", " no ")
    assert contents(tok, slc.data.chat_tokens(tok, conversation(*texts))) == [getattr(text, trim)() for text in texts]


def test_a_template_that_numbers_the_turns_is_no_riddle():
    tok = byte_level(CHATML.replace("m['role']", "loop.index0 | string"))
    texts = ["0", "1 0", "2"]
    chat = slc.data.chat_tokens(tok, conversation(*texts))
    assert contents(tok, chat) == texts
    turns = [f"<|im_start|>{index}\n<|im_end|>\n" for index in range(3)]
    assert tok.decode(chat.input_ids[chat.template]) == "".join(turns)


def test_every_role_and_the_template_share_the_tokens_out_even_when_a_content_spells_the_bos_token():
    tok = byte_level("{{ bos_token }}" + CHATML)
    chat = slc.data.chat_tokens(tok, conversation("a<s>b", "c"))
    assert contents(tok, chat) == ["a<s>b", "c"]
    assert chat.bos.tolist() == [True] + [False] * (len(chat.bos) - 1)
    masks = torch.stack([chat.bos, chat.template, chat.role("user"), chat.role("assistant")])
    assert (masks.sum(dim=0) == 1).all()
    assert not chat.role("system").any()


def test_an_end_of_turn_that_shares_its_id_with_bos_is_template():
    tok = byte_level("{{ bos_token }}{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}", eos="<s>")
    chat = slc.data.chat_tokens(tok, conversation("a", "b"))
    assert chat.bos.tolist() == [True, False, False, False, False]
    assert chat.template.tolist() == [False, False, True, False, True]


def test_bos_that_a_template_repeats_is_a_turn_marker_after_the_start():
    tok = byte_level("{% for m in messages %}{{ bos_token + m['content'] + eos_token }}{% endfor %}")
    chat = slc.data.chat_tokens(tok, conversation("a", "b"))
    assert chat.bos.tolist() == [True, False, False, False, False, False]
    assert chat.template.tolist() == [False, False, True, True, False, True]


def test_marks_do_not_mix_up_ten_messages_and_more():
    tok = byte_level(CHATML)
    texts = [f"m{index}" for index in range(12)]
    assert contents(tok, slc.data.chat_tokens(tok, conversation(*texts))) == texts


# As Qwen 3's: it moves the thought of the last answer in front of it, into a block that is there even if empty.
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' }}{% if loop.last %}{{ '<think>\n' +"
    " ('' if '\ue000' in m['content'] else 'hm') + '\n</think>\n' }}{% endif %}{{ m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (CHATML.replace("m['content']", "m['content'] | upper"), "does not write the message 'ab' unchanged"),
        ("{{ messages[1]['content'] }}", "does not write the message 'ab' unchanged"),
        (CHATML.replace("m['content']", "m['content'] + m['content']"), "does not write the message 'ab' unchanged"),
        ("{{ messages[0]['content'] | length }}" + CHATML, "does not write the message 'ab' unchanged"),
        ("{{ messages[1]['content'] | length }}" + CHATML, "does not write the message 'c' unchanged"),
        (CHATML + "{{ messages[0]['content'][0] }}", "does not write the message 'ab' unchanged"),
        (CHATML + "{% if 'ab' in messages[0]['content'] %}!{% endif %}", "does not write the message 'ab' unchanged"),
        (
            CHATML + "{% if messages[0]['content'] == 'ab' and messages[1]['content'] == 'c' %}!{% endif %}",
            "depends on several contents at once",
        ),
        (THINKING, "does not write the message 'c' unchanged"),
    ],
)
def test_a_template_whose_text_depends_on_the_contents_is_refused(template, message):
    with pytest.raises(ValueError, match=message):
        slc.data.chat_tokens(byte_level(template), conversation("ab", "c"))


def test_a_template_that_rewrites_contents_and_a_missing_one_are_refused():
    tok = tokenizer("chatml")
    tok.chat_template = CHATML.replace("m['content']", "m['content'] | replace('user', 'you')")
    with pytest.raises(ValueError, match="does not write the message 'user model' unchanged"):
        slc.data.chat_tokens(tok, MESSAGES)
    tok.chat_template = None
    with pytest.raises(ValueError, match="no chat template"):
        slc.data.chat_tokens(tok, MESSAGES)
