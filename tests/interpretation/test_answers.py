"""Answers are asked for once, kept at once, and told apart by all that was asked."""

import json

import pytest

from sae_lens_crosscoder.interpretation import Answers, CallableClient

PROMPTS = [({"role": "user", "content": text},) for text in ("a", "b\u2028«", "a", "c")]


def loud(prompt):
    return f"{prompt[0]['content'].upper()} \u2028 «yes»\n"


def test_what_was_asked_is_not_asked_again(tmp_path):
    asked = []
    client = CallableClient(lambda prompt: asked.append(prompt) or loud(prompt), "m")
    answers = Answers(tmp_path / "answers.jsonl", client)
    assert answers.ask(PROMPTS, "") == [loud(prompt) for prompt in PROMPTS]
    assert asked == [PROMPTS[0], PROMPTS[1], PROMPTS[3]]
    again = Answers(tmp_path / "answers.jsonl", client)
    assert again.ask(PROMPTS[::-1], "") == [loud(prompt) for prompt in PROMPTS[::-1]]
    assert len(asked) == 3


@pytest.mark.parametrize(
    "change",
    [dict(model="n"), dict(settings={"temperature": 1}), dict(settings={})],
    ids=["model", "setting", "no setting"],
)
def test_another_model_or_setting_is_another_question(tmp_path, change):
    path = tmp_path / "answers.jsonl"
    same = dict(model="m", settings={"temperature": 0, "seed": 1})
    Answers(path, CallableClient(loud, **same)).ask(PROMPTS, "")
    reordered = CallableClient(loud, "m", {"seed": 1, "temperature": 0})
    assert Answers(path, reordered, recorded_only=True).ask(PROMPTS[:1], "") == [loud(PROMPTS[0])]
    changed = Answers(path, CallableClient(loud, **{**same, **change}), recorded_only=True)
    assert changed.recorded(PROMPTS[0]) is None
    with pytest.raises(ValueError, match=r"to 3 of 4 prompts, and recorded_only=True") as error:
        changed.ask(PROMPTS, "")
    assert "'content': 'a'" in str(error.value)


def test_an_answer_is_on_disk_when_the_next_one_is_asked_for(tmp_path):
    path, n_lines = tmp_path / "answers.jsonl", []

    def function(prompt):
        n_lines.append(len(path.read_text().splitlines()))
        return loud(prompt)

    Answers(path, CallableClient(function, "m")).ask(PROMPTS, "")
    assert n_lines == [0, 1, 2]


@pytest.mark.parametrize("n_lost", [1, 2, 30, 100])
def test_a_line_that_was_cut_off_is_asked_for_again(tmp_path, n_lost):
    path, client = tmp_path / "answers.jsonl", CallableClient(loud, "m")
    Answers(path, client).ask(PROMPTS, "")
    path.write_bytes(path.read_bytes()[:-n_lost])
    Answers(path, client).ask(PROMPTS, "")
    replayed = Answers(path, client, recorded_only=True)
    assert replayed.ask(PROMPTS, "") == [loud(prompt) for prompt in PROMPTS]
    assert len(path.read_bytes().splitlines()) == (3 if n_lost == 1 else 4)


@pytest.mark.parametrize("content", ["{}\n", "[1]\n", "hello", '{"key": 1}\n{"cut', json.dumps({"a": [1]}), "7\n"])
def test_a_file_of_something_else_is_refused_and_left_as_it_is(tmp_path, content):
    path = tmp_path / "other"
    path.write_text(content)
    with pytest.raises(ValueError, match="is not a file of recorded answers"):
        Answers(path, CallableClient(loud, "m"))
    assert path.read_text() == content
    with pytest.raises(ValueError, match="in a folder that does not exist"):
        Answers(tmp_path / "nowhere" / "answers.jsonl", CallableClient(loud, "m"))
