"""Prompts say what they have to, and answers are read strictly or not at all."""

import pytest

from sae_lens_crosscoder.interpretation.prompts import (
    detection_prompt,
    explanation_prompt,
    fuzzing_prompt,
    parse_explanation,
    parse_verdicts,
)

TEXTS = ["one text", "2. another", "a «third»"]


@pytest.mark.parametrize("make", [detection_prompt, fuzzing_prompt])
def test_every_text_has_its_number_and_a_line_of_its_own_after_the_explanation(make):
    (message,) = make("names of cities", TEXTS)
    assert message["role"] == "user"
    assert message["content"].splitlines()[-5:] == [
        "", "3 excerpts:", "1. one text", "2. 2. another", "3. a «third»",
    ]  # fmt: skip
    assert "The latent is active on: names of cities\n" in message["content"]


def test_thirds_are_shown_in_order_and_empty_ones_left_out():
    (message,) = explanation_prompt([["a", "b"], [], ["c"]])
    assert message["content"].endswith("From the strongest third:\na\nb\n\nFrom the weakest third:\nc")


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("[1, 0, 1]", [True, False, True]),
        ("Text 1 fits: [1, 1, 1]?\n\n  [ 0,0 ,1 ]  \n", [False, False, True]),
        *[
            (bad, None)
            for bad in (
                *("", "[1, 0]", "[1, 0, 1, 0]", "1, 0, 1", "[1, 0, 2]", "[1, 0, 1.0]", "[true, false, true]"),
                *("[1 0 1]", "[101]", "[1, 0, 1].", "Answer: [1, 0, 1]", "[1, 0, 1]\n```", "[1, 0, 1]\nDone."),
                "[[1, 0, 1]]",
                "[" * 100_000,
            )
        ],
    ],
)
def test_verdicts_are_a_list_of_the_right_length_on_the_last_line(answer, expected):
    assert parse_verdicts(answer, 3) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("EXPLANATION: words of war ", "words of war"),
        ("EXPLANATION: no\nEXPLANATION: yes\n", "yes"),
        ("EXPLANATION:", None),
        ("EXPLANATION: yes\nI hope this helps.", None),
        ("Explanation: yes", None),
        ("", None),
    ],
)
def test_an_explanation_is_on_the_last_line(answer, expected):
    assert parse_explanation(answer) == expected
