"""No mutated file gives a wrong result or a crash of another kind; benchmarks/mutated_files.py tries many more."""

from collections import Counter

import pytest

from tests.loading.mutated_files import LOADERS, outcomes
from tests.loading.mutations import KINDS

N_PER_KIND = 3


@pytest.mark.parametrize("name", LOADERS)
def test_every_loader_refuses_or_warns_by_name_or_loads_right(name, tmp_path):
    counts = Counter()
    for kind, outcome, found in outcomes(name, N_PER_KIND * len(KINDS), seed=0, folder=tmp_path):
        assert outcome in ("refused", "told", "loaded_right"), (kind, outcome, found)
        counts[outcome] += 1
    assert counts["refused"] > 0
