"""The suite of hard worlds: every situation has a null twin, equal twins run once, rows say what they judge."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from sae_lens_crosscoder.synthetic import null_world

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import planted_hard
from docs_verdicts import short_of
from planted_hard import SITUATIONS, Situation, hard_rows


@pytest.fixture(scope="module")
def rows():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("POOL_TOKENS", "EVALUATION_TOKENS"):
            patch.setattr(planted_hard, name, 1000)
        patch.setattr(planted_hard, "polished", lambda crosscoder, batches: crosscoder)
        situations = (Situation("standard"), Situation("use", {"less_used": True}))
        patch.setattr(planted_hard, "SITUATIONS", situations)
        return list(hard_rows([5], steps=20))


def test_rows_name_the_cell_the_twin_and_the_recipe(rows):
    described = [(row["cell"], row["is_null"], row["recipe"], row["recommended"]) for row in rows]
    worlds = [(cell, False, *recipe) for cell in ("standard", "use") for recipe in (("plain", False), ("polish", True))]
    assert described == [*worlds, ("standard", True, "polish", True), ("use", True, "polish", True)]
    for row in rows:
        assert row["seed"] == 5
        for side in ("chat", "base"):
            assert {f"{name}_{side}_verdict" for name in ("precision", "recall", "n")} <= set(row)


def test_an_equal_null_twin_is_measured_once(rows):
    standard, use = rows[-2:]
    assert repr(standard | {"cell": "use"}) == repr(use)  # nan included


def test_every_situation_has_a_null_twin_in_which_nothing_differs():
    for situation in SITUATIONS:
        coefficients = situation.null(seed=7, **situation.options).sample(300, seed=1).coefficients
        assert (coefficients[..., 0] == coefficients[..., 1]).all(), situation.name
    assert {situation.null for situation in SITUATIONS if situation.name not in ("background", "lora")} == {null_world}


def test_a_world_falls_short_by_its_mean_or_by_any_of_its_seeds():
    """World A has one bad seed that the mean forgives; B misses too many base-only concepts; C's bad row is plain."""
    columns = ["cell", "seed", "recommended", "is_null", "precision_chat_verdict", "recall_base_verdict"]
    rows = [["A", 0, True, False, 0.94, 1.0], ["A", 1, True, False, 1.0, 1.0], ["B", 0, True, False, 1.0, 0.89]]
    rows += [["C", 0, True, False, 0.95, 0.9], ["C", 1, False, False, 0.0, 0.0], ["C", 2, True, True, None, None]]
    frame = pd.DataFrame(rows, columns=columns).assign(precision_base_verdict=None, recall_chat_verdict=1.0)
    assert short_of(frame, ["cell"]) == "B"
    assert short_of(frame, ["cell", "seed"]) == "A, B"
    assert short_of(frame[frame.cell == "C"], ["cell", "seed"]) == "none"
