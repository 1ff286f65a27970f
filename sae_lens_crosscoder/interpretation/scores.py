"""Balanced accuracy of verdicts, with its interval."""

from collections.abc import Sequence
from typing import NamedTuple


class Score(NamedTuple):
    """A balanced accuracy with its 95 % interval; nan without judged texts of both kinds."""

    value: float
    low: float
    high: float


def balanced_accuracy(positives: Sequence[bool], negatives: Sequence[bool]) -> Score:
    """The mean of the share of positives judged yes and of negatives judged no: 1 is perfect, 1/2 is chance.

    For yes and no it equals the AUROC, with ties counting half. The interval combines the Wilson intervals of both
    shares by the method of Newcombe 1998 (Statistics in Medicine 17, 873, method 10) for a difference of shares, so it
    has a width even if every answer is right. It assumes independent answers.

    Args:
        positives, negatives: the verdicts, True for yes.

    >>> [round(number, 2) for number in balanced_accuracy([True, True, True, False], [False] * 4)]
    [0.88, 0.54, 0.98]
    """
    from scipy.stats import binomtest  # slow to import

    if not positives or not negatives:
        return Score(float("nan"), float("nan"), float("nan"))
    shares, below, above = 0.0, 0.0, 0.0
    for n_right, n in ((sum(positives), len(positives)), (len(negatives) - sum(negatives), len(negatives))):
        share = n_right / n
        interval = binomtest(n_right, n).proportion_ci(method="wilson")
        shares += share
        below += (share - interval.low) ** 2
        above += (interval.high - share) ** 2
    return Score(shares / 2, float(shares - below**0.5) / 2, float(shares + above**0.5) / 2)
