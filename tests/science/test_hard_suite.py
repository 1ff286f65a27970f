"""The suite of hard worlds: every situation has a null twin, equal twins run once, rows say what they judge."""

import sys
from pathlib import Path

import pytest

from sae_lens_crosscoder.synthetic import null_world

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import planted_hard
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
