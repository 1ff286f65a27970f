"""Balanced accuracy is the AUROC of yes and no, and its interval covers what it claims."""

import math

import pytest

from sae_lens_crosscoder.interpretation.scores import balanced_accuracy


@pytest.mark.parametrize(("n_positive", "n_negative"), [(1, 1), (3, 5), (15, 15), (20, 7)])
def test_it_is_the_chance_that_a_positive_beats_a_negative(n_positive, n_negative):
    for yes in range(n_positive + 1):
        for wrong in range(n_negative + 1):
            positives = [True] * yes + [False] * (n_positive - yes)
            negatives = [True] * wrong + [False] * (n_negative - wrong)
            beaten = sum((p > q) + (p == q) / 2 for p in positives for q in negatives)
            score = balanced_accuracy(positives, negatives)
            assert score.value == pytest.approx(beaten / (n_positive * n_negative))
            assert 0 <= score.low <= score.value <= score.high <= 1
            assert score.high - score.low > 0.5 / (n_positive + n_negative)  # even where every answer is right


def test_the_interval_covers_the_truth_in_at_least_nine_of_ten_samples_and_on_average_in_95_percent():
    """By every outcome of 15 positives and 15 negatives, and its probability."""
    n = 15
    intervals = {
        (a, b): balanced_accuracy([True] * a + [False] * (n - a), [True] * b + [False] * (n - b))
        for a in range(n + 1)
        for b in range(n + 1)
    }
    rates = [0.05 * step for step in range(10, 20)]
    covered = []
    for p in rates:
        for q in rates:
            truth = (p + q) / 2
            chance = 0.0
            for (a, b), score in intervals.items():
                if score.low <= truth <= score.high:
                    chance += probability(a, n, p) * probability(b, n, 1 - q)
            covered.append(chance)
    assert min(covered) > 0.9
    assert 0.94 < sum(covered) / len(covered) < 0.97


def probability(k, n, p):
    return math.comb(n, k) * p**k * (1 - p) ** (n - k)


def test_without_texts_of_both_kinds_there_is_no_score():
    for positives, negatives in (([], [True]), ([True], []), ([], [])):
        assert all(math.isnan(number) for number in balanced_accuracy(positives, negatives))
