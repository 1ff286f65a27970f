"""How good an explanation is, from what was judged by it."""

from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import binomtest


class Score(NamedTuple):
    """A balanced accuracy with its 95 % interval; nan without judged texts of both kinds."""

    value: float
    low: float
    high: float


def balanced_accuracy(positives: Sequence[bool], negatives: Sequence[bool]) -> Score:
    """The mean share of positives that got a yes and of negatives that got a no: 1 is perfect, 1/2 says nothing.

    Of answers that are yes or no this is the AUROC as well, ties counting half. The interval joins both shares' Wilson
    intervals as Newcombe 1998 (Statistics in Medicine 17, 873, method 10) does for a difference of shares, so that it
    has a width even where every answer was right. It takes answers for independent.

    Args:
        positives, negatives: the verdicts, True for yes.

    >>> [round(number, 2) for number in balanced_accuracy([True, True, True, False], [False] * 4)]
    [0.88, 0.54, 0.98]
    """
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
