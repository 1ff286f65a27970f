"""Planted latents are explained and foreseen by a model that knows their rules, and by no other explanation."""

import pandas as pd
import pytest

from sae_lens_crosscoder.interpretation import Answers, CallableClient, interpret, prompts
from tests.interpretation.conftest import DEAD, EVERY_TOKEN, EVERYWHERE, PLANTED, RULES, make_cases, rule_model

SCORES = ["detection_random", "detection_hard", "fuzzing"]


def answers(path, function=rule_model, **kwargs):
    return Answers(path / "answers.jsonl", CallableClient(function, "rules"), **kwargs)


def test_planted_latents_are_explained_and_foreseen(cases, tmp_path):
    found = interpret(cases, answers(tmp_path))
    table = found.table
    assert table.explanation.to_dict() == dict(zip(PLANTED, RULES, strict=True))
    assert (table[SCORES] == 1.0).all(axis=None)
    assert (table[[f"{name}_low" for name in SCORES]] < 1.0).all(axis=None)
    assert (table[[f"{name}_high" for name in SCORES]] == 1.0).all(axis=None)
    assert (table.n_judged == 3 * 60 + 2 * 60).all()
    assert (table.n_unparsable == 0).all()
    assert (table.interpreter == "rules").all()
    assert found.manifest["cases_seed"] == 0
    assert found.manifest["settings"] == {}


def test_explanations_of_other_latents_foresee_nothing(cases, tmp_path):
    names = list(RULES)
    shuffled = {latent: names[latent - 1] for latent in PLANTED}
    found = interpret(cases, answers(tmp_path), explanations=shuffled)
    table = found.table
    assert table.explanation.to_dict() == shuffled
    assert table[SCORES].stack().between(0.38, 0.62).all()
    assert table[SCORES].mean().between(0.44, 0.56).all()
    assert found.manifest["n_explanations_given"] == len(shuffled)


@pytest.mark.parametrize("texts_per_prompt", [1, 7])
def test_texts_are_judged_alike_in_prompts_of_any_size(cases, tmp_path, texts_per_prompt):
    names = {latent: list(RULES)[latent - 1] for latent in PLANTED}
    expected = interpret(cases, answers(tmp_path), explanations=names).table
    table = interpret(cases, answers(tmp_path), explanations=names, texts_per_prompt=texts_per_prompt).table
    pd.testing.assert_frame_equal(table, expected)


def test_a_dead_latent_has_no_explanation_and_one_that_is_always_on_no_scores(planted, tmp_path):
    cases = make_cases(planted, latents=[DEAD, EVERYWHERE])
    asked = []
    table = interpret(cases, answers(tmp_path, lambda prompt: asked.append(prompt) or rule_model(prompt))).table
    assert table.explanation.dropna().to_dict() == {EVERYWHERE: EVERY_TOKEN}
    assert table[SCORES].isna().all(axis=None)
    assert table.n_judged.to_dict() == {DEAD: 0, EVERYWHERE: 60}  # positives, beside which there is no negative
    assert len(asked) == 1 + 12


def test_answers_without_the_form_asked_for_are_counted_and_not_guessed(cases, tmp_path):
    n_bad = 0

    def sloppy(prompt):
        nonlocal n_bad
        answer = rule_model(prompt)
        if "EXPLANATION" in answer or len(prompt[-1]["content"]) % 3:
            return answer
        n_bad += 1
        return answer.replace("[", "1, ") + " as I said"

    table = interpret(cases, answers(tmp_path, sloppy)).table
    assert 0 < n_bad == table.n_unparsable.sum()
    assert table.n_judged.sum() == len(table) * 300 - 5 * n_bad
    assert (table[SCORES] == 1.0).all(axis=None)


def test_a_latent_without_a_readable_explanation_is_not_scored(cases, tmp_path):
    table = interpret(cases, answers(tmp_path, lambda prompt: "These are animals.")).table
    assert table.explanation.isna().all()
    assert table[SCORES].isna().all(axis=None)
    assert (table.n_unparsable == 1).all()
    assert (table.n_judged == 0).all()


def test_a_changed_prompt_misses_the_recorded_answers_loudly(cases, cases_of_another_seed, tmp_path, monkeypatch):
    first = interpret(cases, answers(tmp_path)).table

    def refuse(prompt):
        raise AssertionError("asked")

    replayed = answers(tmp_path, refuse, recorded_only=True)
    pd.testing.assert_frame_equal(interpret(cases, replayed).table, first)
    with pytest.raises(ValueError, match=r"has no answer of 'rules' .* to 120 of 120 prompts"):
        interpret(cases, replayed, texts_per_prompt=10)
    with pytest.raises(ValueError, match="The prompts, the model or the settings changed"):
        interpret(cases_of_another_seed, replayed)
    monkeypatch.setattr(prompts, "_EXPLANATION", "IN SHORT:")
    with pytest.raises(ValueError, match="4 of 4 prompts"):
        interpret(cases, replayed)


def test_a_run_that_was_interrupted_goes_on_and_latents_do_not_depend_on_others(planted, cases, tmp_path):
    expected = interpret(cases, answers(tmp_path)).table
    path = tmp_path / "again"
    path.mkdir()
    n_asked = 0

    def dies(prompt):
        nonlocal n_asked
        n_asked += 1
        if n_asked == 100:
            raise ConnectionError("gone")
        return rule_model(prompt)

    alone = interpret(make_cases(planted, latents=[2]), answers(path, dies)).table
    pd.testing.assert_frame_equal(alone, expected.loc[[2]])
    n_alone = n_asked
    with pytest.raises(ConnectionError):
        interpret(cases, answers(path, dies))
    pd.testing.assert_frame_equal(interpret(cases, answers(path, dies)).table, expected)
    n_prompts = len((tmp_path / "answers.jsonl").read_text().splitlines())
    assert n_alone == n_prompts / 4
    assert n_asked == n_prompts + 1  # the one that died is the only one asked twice


def test_what_makes_no_sense_is_refused(cases, tmp_path):
    with pytest.raises(ValueError, match="Latent 9 has an explanation but no case"):
        interpret(cases, answers(tmp_path), explanations={9: "birds"})
    with pytest.raises(ValueError, match="texts_per_prompt=0"):
        interpret(cases, answers(tmp_path), texts_per_prompt=0)
