"""Rows know their template tokens: those of conversations by the template, the built-in pair's by their making."""

import pytest
import torch

from sae_lens_crosscoder.data.chat_tokens import chat_tokens
from sae_lens_crosscoder.data.labelled_rows import labelled_rows, tiny_labelled_rows
from sae_lens_crosscoder.models.tiny import dialogues, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
CHATS = dialogues(5, seed=0, split="held_out")
TEXTS = ["paris is in france .", "paris is in france . paris is in france ."]


def names(groups):
    return [[None if label < 0 else groups.names[label] for label in row] for row in groups.labels.tolist()]


def test_conversations_and_texts_keep_every_token_and_its_group():
    rows = labelled_rows(TOKENIZER, CHATS, TEXTS)
    assert list(rows.sources) == ["chat"] * 5 + ["web"] * 2
    for messages, ids, group in zip(CHATS, rows.tokens.tolist(), names(rows.groups), strict=False):
        marked = chat_tokens(TOKENIZER, messages)
        n = len(marked.input_ids)
        assert ids[:n] == marked.input_ids.tolist()
        assert [name == "template" for name in group[:n]] == marked.template.tolist()
        assert [name == "user" for name in group[:n]] == marked.role("user").tolist()
        assert set(group[n:]) <= {None}
    for text, ids, group in zip(TEXTS, rows.tokens[5:].tolist(), names(rows.groups)[5:], strict=True):
        n = len(text.split()) + 1
        assert TOKENIZER.decode(ids[1:n]) == text
        assert group == ["bos"] + ["text"] * (n - 1) + [None] * (len(group) - n)


@pytest.mark.parametrize(("chats", "texts"), [(CHATS, []), ([], TEXTS), (CHATS, TEXTS)])
def test_rows_are_cut_off_at_the_length(chats, texts):
    whole, cut = labelled_rows(TOKENIZER, chats, texts), labelled_rows(TOKENIZER, chats, texts, max_length=4)
    assert cut.tokens.shape == cut.groups.labels.shape == (len(chats) + len(texts), 4)
    assert torch.equal(cut.tokens, whole.tokens[:, :4])
    assert names(cut.groups) == [row[:4] for row in names(whole.groups)]


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="`chats` and `texts` are both empty"):
        labelled_rows(TOKENIZER, [])


def test_the_built_in_rows_say_of_every_document_whose_tokens_are_the_templates():
    rows = tiny_labelled_rows(8)
    words = [TOKENIZER.convert_ids_to_tokens(row) for row in rows.tokens.tolist()]
    seen = set()
    for row, group, source in zip(words, names(rows.groups), names(rows.sources), strict=True):
        starts = [i for i, word in enumerate(row) if word == "<bos>"]
        assert starts[0] == 0
        for start, stop in zip(starts, [*starts[1:], len(row)], strict=True):
            document, its = row[start:stop], group[start:stop]
            if len(document) < 2:
                continue  # which kind of document was cut off cannot be told
            is_chat = document[1] == "<sot>"
            assert set(source[start:stop]) == {"chat" if is_chat else "web"}
            assert its[0] == "bos"
            assert "bos" not in its[1:]
            marks = [word in ("<sot>", "<eot>") or document[i] == "<sot>" for i, word in enumerate(document[1:])]
            assert [name == "template" for name in its[1:]] == marks
            assert is_chat or set(its[1:]) == {"text"}
            seen |= set(its)
    assert seen == {"bos", "template", "user", "assistant", "text"}
    assert torch.equal(tiny_labelled_rows(8).tokens, rows.tokens)
