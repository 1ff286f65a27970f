"""Laws of prompts: all forms of files give the same requests, and a row ends where the answer begins."""

import json

import pytest

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.data import load_prompts, tokenize_prompts

TEXTS = ["now could you sketch the dog ?", "so would you envy the goat ?"]
CHATS = [[{"role": "user", "content": text}] for text in TEXTS]
SHAREGPT = [{"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "yes"}]} for text in TEXTS]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("requests.txt", "\n".join([*TEXTS, "  "])),
        ("chats.jsonl", "\n".join(map(json.dumps, CHATS))),
        ("objects.jsonl", "\n".join(json.dumps({"messages": chat}) for chat in CHATS)),
        ("list.json", json.dumps(TEXTS)),
        ("object.json", json.dumps({"seed": 0, "a": [{"prompt": TEXTS[0]}], "b": [{"prompt": TEXTS[1]}]})),
    ],
)
def test_every_form_of_file_gives_the_same_requests(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert load_prompts(tmp_path / name) == CHATS


def test_conversations_keep_their_answers_in_the_file_and_end_with_the_request_as_prompts(tmp_path):
    (tmp_path / "chats.json").write_text(json.dumps(SHAREGPT))
    loaded = load_prompts(tmp_path / "chats.json")
    assert [message["role"] for message in loaded[0]] == ["user", "assistant"]
    tokenizer = slc.models.tiny_tokenizer()
    prompts = tokenize_prompts(loaded, tokenizer)
    assert prompts.tokens.tolist() == tokenize_prompts(TEXTS, tokenizer).tokens.tolist()


def test_rows_are_the_rendered_template_padded_on_the_right():
    tokenizer = slc.models.tiny_tokenizer()
    prompts = tokenize_prompts(TEXTS, tokenizer)
    for row, mask, labels, chat in zip(prompts.tokens, prompts.token_mask, prompts.groups.labels, CHATS, strict=True):
        text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        assert row[mask].tolist() == tokenizer(text, add_special_tokens=False)["input_ids"]
        assert mask.tolist() == sorted(mask.tolist(), reverse=True)
        assert ((labels == -1) == ~mask).all()
    assert {"template", "user"} <= set(prompts.groups.names)


def test_without_a_chat_template_texts_follow_bos():
    tokenizer = slc.models.tiny_tokenizer()
    tokenizer.chat_template = None
    prompts = tokenize_prompts(TEXTS, tokenizer)
    for row, mask, text in zip(prompts.tokens, prompts.token_mask, TEXTS, strict=True):
        assert row[mask].tolist() == [tokenizer.bos_token_id, *tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert prompts.groups.names == ("bos", "text")
    assert tokenize_prompts(CHATS, tokenizer).tokens.tolist() == prompts.tokens.tolist()
    with pytest.raises(ValueError, match="no chat template"):
        tokenize_prompts([[*CHATS[0], {"role": "assistant", "content": "yes"}, *CHATS[1]]], tokenizer)


def test_what_is_no_prompt_is_refused_by_name(tmp_path):
    for name, text, match in (
        ("empty.txt", "\n", "has no prompts"),
        ("numbers.json", "[1]", "got a int"),
        ("keys.jsonl", '{"question": "x"}', "none of the keys"),
        ("broken.jsonl", "{", "cannot be read"),
        ("roles.jsonl", '[{"role": "wizard", "content": "x"}]', "wizard"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(ValueError, match=match) as error:
            load_prompts(tmp_path / name)
        assert name in str(error.value)
    with pytest.raises(ValueError, match="`prompts` is empty"):
        tokenize_prompts([], slc.models.tiny_tokenizer())
    with pytest.raises(ValueError, match="no message of the user"):
        tokenize_prompts([[{"role": "assistant", "content": "hi"}]], slc.models.tiny_tokenizer())
