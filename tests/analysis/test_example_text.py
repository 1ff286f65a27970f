"""Text with marks: marks are on whole characters, and everything else is the tokenizer's own text."""

import pytest
import torch

from sae_lens_crosscoder.analysis.examples.text import marked_text, plain_text
from tests.interpretation.test_local_client import byte_tokenizer


def shown(text, marked):
    """Of a tokenizer with one token per byte."""
    tokenizer = byte_tokenizer(None)
    ids = torch.tensor(tokenizer(text)["input_ids"])
    marks = torch.zeros(len(ids), dtype=torch.bool)
    marks[marked] = True
    return marked_text(ids, marks, tokenizer), plain_text(ids, tokenizer)


@pytest.mark.parametrize(
    ("text", "marked", "expected"),
    [
        ("a b", [1, 2], "a« »«b»"),
        ("né!", [1], "n«é»!"),
        ("né!", [2], "n«é»!"),
        ("a😀b", [2], "a«😀»b"),
        ("a😀b", [1, 4], "a«😀»b"),
        ("日本", [4], "日«本»"),
    ],
)
def test_characters_of_several_tokens_are_marked_as_one(text, marked, expected):
    assert shown(text, marked) == (expected, text)


def test_line_breaks_and_the_marks_own_signs_are_written_otherwise():
    assert shown("«a»\nb\u2028", [2]) == ("\u2039«a»\u203a\\nb\\n", "\u2039a\u203a\\nb\\n")
    assert shown("a\r\nb", [])[1] == "a\\nb"


def test_no_mark_is_lost_at_the_end_of_a_window_that_cuts_a_character():
    tokenizer = byte_tokenizer(None)
    ids = torch.tensor(tokenizer("a😀")["input_ids"][:3])
    assert marked_text(ids, torch.tensor([False, True, False]), tokenizer) == "a«\ufffd»"
