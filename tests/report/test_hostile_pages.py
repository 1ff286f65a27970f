"""No text makes a page wrong; benchmarks/mutated_files.py tries many more."""

import pytest

from tests.report.hostile_pages import PAGES, Words, page_outcomes, read


class Conclusion(Words):
    """Plain words, but for the conclusion, the eighth text of a card."""

    def __init__(self, text):
        super().__init__()
        self.text = text

    def __call__(self, must_be_seen=True):
        word = super().__call__(must_be_seen)
        return self.text if len(self.given) == 8 else word


@pytest.mark.parametrize("conclusion", ["# head", "7", "- a", "> a", "    a", "===", "```", "<b>", "+ a"])
def test_no_conclusion_begins_a_heading_a_list_or_a_quote_of_the_card(conclusion, tmp_path):
    kinds = [read(PAGES["model card"](Conclusion(text), tmp_path)) for text in ("word", conclusion)]
    assert kinds[0] == kinds[1]


@pytest.mark.parametrize("name", PAGES)
def test_whatever_names_tokens_and_labels_say_they_are_text(name, tmp_path):
    found = list(page_outcomes(name, 6, seed=0, folder=tmp_path))
    assert len(found) == 6
    assert [(outcome, why) for outcome, why in found if outcome not in ("refused", "shown_right")] == []
    assert any(outcome == "shown_right" for outcome, _ in found)
