"""No text makes a page wrong; benchmarks/mutated_files.py tries many more."""

import pytest

from tests.report.hostile_pages import PAGES, page_outcomes


@pytest.mark.parametrize("name", PAGES)
def test_whatever_names_tokens_and_labels_say_they_are_text(name, tmp_path):
    found = list(page_outcomes(name, 6, seed=0, folder=tmp_path))
    assert len(found) == 6
    assert [(outcome, why) for outcome, why in found if outcome not in ("refused", "shown_right")] == []
    assert any(outcome == "shown_right" for outcome, _ in found)
