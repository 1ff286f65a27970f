"""Results of different seeds join to what one process would have written, and only if they were measured alike."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
from join_results import joined


def document(seeds, output="part.json", **changes):
    rows = [{"cell": cell, "seed": seed} for seed in seeds for cell in ("b", "a")]
    seeds = " ".join(map(str, seeds))
    command = f"python benchmarks/x.py --suite hard --seeds {seeds} --output {output}"
    return {"command": command, "commit": "abc", "steps": 5} | changes | {"rows": rows}


def test_parts_join_to_the_document_of_one_run():
    parts = [document([1, 0], "/elsewhere/p.json"), document([11, 2])]
    assert joined(parts, "results/all.json") == document([0, 1, 2, 11], "results/all.json")
    assert joined(parts[::-1], "results/all.json") == joined(parts, "results/all.json")


def test_the_concepts_of_all_seeds_are_kept():
    parts = [document([seed], concepts={f"A, seed {seed}": {"kind": ["shared"]}}) for seed in (0, 1)]
    assert joined(parts, "all.json")["concepts"] == parts[0]["concepts"] | parts[1]["concepts"]


@pytest.mark.parametrize("changes", [{"commit": "abd"}, {"steps": 6}, {"command": "python y.py --seeds 3"}])
def test_parts_that_were_measured_differently_are_refused(changes):
    with pytest.raises(ValueError, match="differ in command"):
        joined([document([0]), document([3], **changes)], "all.json")


def test_a_seed_in_two_parts_is_refused():
    with pytest.raises(ValueError, match="more than one part"):
        joined([document([0, 1]), document([1])], "all.json")
