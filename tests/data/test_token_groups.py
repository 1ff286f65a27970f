"""Every token of a conversation has one group, and every place in the template its own."""

from inspect import unwrap

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import dialogues, tiny_tokenizer
from tests.data.test_chat_tokens import CHATML, MESSAGES, TEMPLATES, byte_level, conversation, tokenizer

QWEN = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nyes it is<|im_end|>\n' }}{% endif %}" + CHATML
TURN = {  # what each template writes before and after a content, {} standing for the role
    "gemma": (["<start_of_turn>", "{}", "\n"], ["<end_of_turn>", "\n"]),
    "llama": (["<|start_header_id|>", "{}", "<|end_header_id|>", "\n", "\n"], ["<|eot_id|>"]),
    "chatml": (["<|im_start|>", "{}", "\n"], ["<|im_end|>", "\n"]),
}
CONTENTS = [["user", "model"], ["yes", "it", "is"], ["go"]]


def chat_tokenizer(family):
    if family != "qwen":
        return tokenizer(family)
    tok = tokenizer("chatml")
    tok.chat_template = QWEN
    return tok


def groups_of(tok, messages, by, **options):
    """Each token with the name of its group, but for the spaces between words."""
    chat = slc.data.chat_tokens(tok, messages, **options)
    groups = slc.data.token_groups([chat], tok, by)
    words = tok.convert_ids_to_tokens(chat.input_ids.tolist())
    named = [(word, groups.names[label]) for word, label in zip(words, groups.labels[0].tolist(), strict=True)]
    return [(word, name) for word, name in named if word != " "]


def places_by_hand(family):
    """Turn by turn: the end of one and the beginning of the next are one stretch, counted from 0."""
    turn = TURN["chatml" if family == "qwen" else family]
    names = ["user", "model" if family == "gemma" else "assistant", "user"]
    first = ["<|im_start|>", "system", "\n", "yes", "it", "is", "<|im_end|>", "\n"] if family == "qwen" else []
    expected = [] if family in ("chatml", "qwen") else [("<bos>", "bos")]
    edges = ["start", "user", "assistant", "user", "end"]
    for gap in range(4):
        stretch = first if gap == 0 else list(turn[1])
        if gap < 3:
            stretch = stretch + [word.format(names[gap]) for word in turn[0]]
        for place, word in enumerate(stretch):
            expected.append((word, f"template {edges[gap]}>{edges[gap + 1]} {place} {word!r}"))
        if gap < 3:
            expected += [(word, edges[gap + 1]) for word in CONTENTS[gap]]
    return expected


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_place_is_the_stretch_between_two_contents_and_the_position_in_it(family):
    assert groups_of(chat_tokenizer(family), MESSAGES, "place") == places_by_hand(family)


@pytest.mark.parametrize("family", [*TEMPLATES, "qwen"])
def test_roles_and_control_tokens_are_coarser_than_places(family):
    tok = chat_tokenizer(family)
    expected = [("<unk>" if word == "system" else word, place.split(" ")[0]) for word, place in places_by_hand(family)]
    assert groups_of(tok, MESSAGES, "role") == expected
    split = [(word, f"template {word!r}" if name == "template" else name) for word, name in expected]
    assert groups_of(tok, MESSAGES, "token") == split


def test_the_generation_prompt_follows_the_last_content():
    named = groups_of(tokenizer("gemma"), MESSAGES[:1], "place", add_generation_prompt=True)
    expected = ["<end_of_turn>", "\n", "<start_of_turn>", "model", "\n"]
    assert named[-5:] == [(word, f"template user>end {i} {word!r}") for i, word in enumerate(expected)]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_an_empty_content_still_parts_the_template_in_two(trim_offsets):
    tok = byte_level(CHATML, trim_offsets)
    named = groups_of(tok, conversation(" a", "", "b"), "place")
    after_user = [name for _, name in named if name.startswith("template user>assistant ")]
    after_assistant = [name for _, name in named if name.startswith("template assistant>user ")]
    n = len(["<|im_end|>", "\n", "<|im_start|>", "\n"])
    assert (len(after_user), len(after_assistant)) == (n + len("assistant"), n + len("user"))


def test_the_words_of_a_further_role_are_other():
    tok = tokenizer("chatml")
    messages = [{"role": "system", "content": "go"}, *MESSAGES]
    assert [name for word, name in groups_of(tok, messages, "role") if word == "go"] == ["other", "user"]


def test_shorter_conversations_of_the_built_in_pair_are_left_out_behind_their_end():
    tok = tiny_tokenizer()
    chats = [slc.data.chat_tokens(tok, messages) for messages in dialogues(20, seed=3)]
    groups = slc.data.token_groups(chats, tok)
    assert set(groups.names) == {"bos", "template", "user", "assistant"}
    for chat, row in zip(chats, groups.labels, strict=True):
        n = len(chat.input_ids)
        assert (row[n:] == -1).all()
        for name, mask in [("bos", chat.bos), ("template", chat.template), ("user", chat.role("user"))]:
            assert torch.equal(row[:n] == groups.names.index(name), mask)


def test_dropping_the_first_tokens_leaves_the_others_as_they_are():
    labels = torch.tensor([[0, 1, 2, 1], [0, 2, -1, -1]])
    groups = slc.data.TokenGroups(labels, ("bos", "template x", "user"))
    assert groups.drop_first_n(2).labels.tolist() == [[-1, -1, 2, 1], [-1, -1, -1, -1]]
    assert torch.equal(groups.drop_first_n(0).labels, labels)
    assert labels[0, 0] == 0
    assert groups.is_template == (False, True, False)


def test_what_cannot_be_grouped_is_refused_by_name():
    unchecked = unwrap(slc.data.token_groups)
    tok = tokenizer("gemma")
    with pytest.raises(ValueError, match="by='word' is not one of"):
        unchecked([slc.data.chat_tokens(tok, MESSAGES)], tok, "word")
    with pytest.raises(ValueError, match="`chats` is empty"):
        slc.data.token_groups([], tok)
    with pytest.raises(ValueError, match="labels range from 0 to 2, expected -1 to 1"):
        slc.data.TokenGroups(torch.tensor([[0, 2]]), ("a", "b"))
    with pytest.raises(ValueError, match="contains duplicates"):
        slc.data.TokenGroups(torch.tensor([[0, 1]]), ("a", "a"))
    with pytest.raises(ValueError, match="n=-1 must be at least 0"):
        slc.data.TokenGroups(torch.tensor([[0, 1]]), ("a", "b")).drop_first_n(-1)
