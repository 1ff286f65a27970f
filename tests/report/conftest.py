"""Fixtures of the report's tests."""

import pytest

from sae_lens_crosscoder.report import write_explorer
from tests.report.explorations import make_exploration
from tests.report.hostile_explorations import WORDS, N
from tests.report.made_up import HOSTILE, make_table


@pytest.fixture
def tables():
    return {"l1": make_table(seed=0), "batchtopk": make_table(seed=1)}


@pytest.fixture(scope="module")
def explorations(tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    labelled = make_exploration(folder, N, seed=0, words=WORDS)
    labelled.table["user_label"] = "<b>mine</b>"
    return {"l1": labelled, HOSTILE: make_exploration(folder, 40, seed=1)}


@pytest.fixture(scope="module")
def path(explorations, tmp_path_factory):
    return write_explorer(explorations, tmp_path_factory.mktemp("pages") / "new" / "e.html", title=HOSTILE)
