"""The estimate is of the prompts that are then asked, and asks none of them."""

import math

import pytest

import sae_lens_crosscoder as slc
from tests.interpretation.conftest import RULES, rule_model

PRICES = dict(price_per_million_prompt_tokens=3.0, price_per_million_answer_tokens=15.0, tokens_per_answer=7)


def test_it_counts_what_is_then_asked(cases, tmp_path):
    asked = []
    client = slc.interpretation.CallableClient(lambda prompt: asked.append(prompt) or rule_model(prompt), "rules")
    answers = slc.interpretation.Answers(tmp_path / "answers.jsonl", client)
    given = {latent: name for latent, name in enumerate(RULES)}
    options = dict(texts_per_prompt=4, explanations=given)
    before = slc.interpretation.interpretation_cost(cases, answers, **options, **PRICES, count_tokens=len)
    assert asked == []
    assert not answers.path.exists()
    slc.interpretation.interpret(cases, answers, **options)
    n_letters = sum(len(message["content"]) for prompt in asked for message in prompt)
    assert (before.n_prompts, before.n_recorded, before.n_prompt_tokens) == (len(asked), 0, n_letters)
    assert before.n_answer_tokens == 7 * len(asked)
    assert before.price == pytest.approx((3 * n_letters + 15 * 7 * len(asked)) / 1e6)
    assert f"about {before.price:.2f} at these prices" in str(before)
    after = slc.interpretation.interpretation_cost(cases, answers, **options, **PRICES)
    assert (after.n_prompts, after.n_recorded, after.price) == (0, len(asked), 0)


def test_scoring_is_counted_before_there_are_explanations(cases, tmp_path):
    asked = []
    client = slc.interpretation.CallableClient(lambda prompt: asked.append(prompt) or rule_model(prompt), "rules")
    answers = slc.interpretation.Answers(tmp_path / "answers.jsonl", client)
    before = slc.interpretation.interpretation_cost(cases, answers, count_tokens=len)
    slc.interpretation.interpret(cases, answers)
    assert before.n_prompts == len(asked)
    n_letters = sum(len(prompt[0]["content"]) for prompt in asked)
    assert n_letters < before.n_prompt_tokens < 1.2 * n_letters
    assert math.isnan(before.price)
    assert "no prices given" in str(before)
