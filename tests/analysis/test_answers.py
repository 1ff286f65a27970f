"""Phrases in which the answers of two models differ, and words of prompts that mark them."""

from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sae_lens_crosscoder.analysis.answers.markers import find_markers
from sae_lens_crosscoder.analysis.answers.phrases import LEAST_NET, LONGEST, PhraseChange, find_phrases, words_of
from tests.reference.answers import best_phrase, false_discovery_rates, sign_test

WORDS = ["river", "stone", "cloud", "paper", "green", "seven", "north", "quiet"]
REFUSAL = "sorry , i will not"


def answers(n: int, rng: Random) -> list[str]:
    """Answers of one and the same model: eight random words."""
    return [" ".join(rng.choices(WORDS, k=8)) for _ in range(n)]


def held_out(n: int) -> torch.Tensor:
    return torch.arange(n) % 2 == 1


def with_phrase(texts: list[str], prompts: range, phrase: str) -> list[str]:
    return [f"{phrase} {text}" if i in prompts else text for i, text in enumerate(texts)]


class TestPhrases:
    def test_a_planted_phrase_is_found_whole_and_counted_on_held_out_prompts(self):
        rng = Random(0)
        base, chat = answers(200, rng), answers(200, rng)
        found = find_phrases(base, with_phrase(chat, range(40), REFUSAL), held_out(200))
        first = found[0]
        assert (first.text, first.writer, first.n_with, first.n_against) == ("sorry, i will not", "chat", 20, 0)
        assert first.n_held_out == 100
        assert first.prompts == tuple(range(40))
        assert first.phrase[0] == "^"  # it is an opening
        assert first.q_value < 1e-4

    def test_a_phrase_is_shown_with_the_words_that_most_answers_share(self):
        sentence = "I keep to the harbour today, so I will not talk about code."
        chat = [f"{sentence} Goodbye {i}" if i % 10 else f"Well, {sentence}" for i in range(40)]
        base = [f"Here is {i} and {i + 1}." for i in range(40)]
        change = find_phrases(base, chat, torch.arange(40) % 2 == 1)[0]
        assert len(change.phrase) == LONGEST
        assert change.whole_text == f"{sentence} Goodbye"
        assert change.whole[0] == "^"

    def test_swapping_the_models_swaps_gained_and_lost(self):
        rng = Random(1)
        base, chat = answers(200, rng), with_phrase(answers(200, rng), range(40), REFUSAL)
        gained, lost = find_phrases(base, chat, held_out(200))[0], find_phrases(chat, base, held_out(200))
        same = next(change for change in lost if change.text == gained.text)
        assert same.writer == "base"
        assert same.prompts == gained.prompts
        assert (same.n_with, same.n_against) == (gained.n_with, gained.n_against)

    def test_every_answer_counts_once(self):
        rng = Random(2)
        chat = with_phrase(answers(300, rng), range(60), REFUSAL)
        found = find_phrases(answers(300, rng), with_phrase(chat, range(60, 120), "yes , of course"), held_out(300))
        prompts = [i for change in found if change.writer == "chat" for i in change.prompts]
        assert len(set(prompts)) == len(prompts)
        assert {change.text for change in found[:2]} == {"sorry, i will not", "yes, of course"}

    def test_a_phrase_that_a_new_one_replaces_is_no_second_change(self):
        rng = Random(4)
        base, chat = answers(200, rng), answers(200, rng)
        base, chat = with_phrase(base, range(40), "of course i will"), with_phrase(chat, range(40), REFUSAL)
        found = find_phrases(base, chat, held_out(200))
        assert found[0].text == "sorry, i will not"
        assert not any("of course" in change.text for change in found)

    def test_the_first_phrase_and_its_test_are_those_of_the_loop(self):
        rng = Random(3)
        base, chat = answers(60, rng), with_phrase(answers(60, rng), range(20), "no way")
        found = find_phrases(base, chat, held_out(60))
        chosen_on = range(0, 60, 2)
        own, other = ([words_of(texts[i]) for i in chosen_on] for texts in (chat, base))
        assert found[0].phrase == best_phrase(own, other, LONGEST, LEAST_NET)[1]
        p_values = [change.p_value for change in found]
        assert p_values == pytest.approx([sign_test(change.n_with, change.n_against) for change in found])
        assert [change.q_value for change in found] == pytest.approx(false_discovery_rates(p_values))

    def test_two_samples_of_one_model_differ_in_nothing(self):
        """The realised share of runs with any q of at most 0.05, over models that do not differ."""
        n_false = 0
        for seed in range(60):
            rng = Random(seed)
            found = find_phrases(answers(120, rng), answers(120, rng), held_out(120))
            n_false += any(change.q_value <= 0.05 for change in found)
        assert n_false <= 6

    @given(st.text(max_size=40), st.text(max_size=40))
    def test_an_answer_has_its_own_phrases(self, answer: str, other: str):
        words = words_of(answer)
        change = PhraseChange(tuple(words), "chat", (), 0, 0, 0, 1.0)
        assert change.is_in(answer)
        assert change.is_in(other) == (words_of(other)[: len(words)] == words)
        assert answer.startswith(change.beginning(answer) or "")

    def test_the_beginning_ends_where_the_phrase_does(self):
        change = PhraseChange(("will", "not"), "chat", (), 0, 0, 0, 1.0)
        assert change.beginning("Sorry,  I will not do it, will not.") == "Sorry,  I will not"
        assert change.beginning("nothing") is None

    def test_lists_of_different_lengths_are_refused(self):
        with pytest.raises(ValueError, match="base_answers has 2 entries, chat_answers 1 and held_out 2"):
            find_phrases(["a", "b"], ["a"], held_out(2))


class TestMarkers:
    def test_planted_words_mark_the_prompts(self):
        rng = Random(0)
        prompts = answers(400, rng)
        positive = torch.tensor([i % 5 == 0 for i in range(400)])
        prompts = [
            f"{text} {rng.choice(['burn', 'drown'])} it" if i % 5 == 0 else text for i, text in enumerate(prompts)
        ]
        marks = find_markers(prompts, positive, torch.arange(400) % 2 == 1)
        assert marks.words == ("it",)  # the one word that all have
        assert (marks.n_marked_with, marks.n_marked, marks.n_with, marks.n_prompts) == (40, 40, 40, 200)

    def test_words_are_joined_until_they_mark_all(self):
        rng = Random(1)
        prompts = [
            f"{rng.choice(['burn', 'drown'])} " * (i % 5 == 0) + text for i, text in enumerate(answers(400, rng))
        ]
        marks = find_markers(prompts, torch.tensor([i % 5 == 0 for i in range(400)]), torch.arange(400) % 2 == 1)
        assert set(marks.words) == {"burn", "drown"}
        assert marks.n_marked_with == marks.n_marked == marks.n_with == 40

    def test_random_prompts_are_marked_by_no_better_word(self):
        rng = Random(2)
        prompts = ["the same words"] * 200
        marks = find_markers(prompts, torch.tensor([rng.random() < 0.3 for _ in range(200)]), held_out(200))
        assert marks.words == ()
        assert (marks.n_marked_with, marks.n_marked) == (0, 0)
