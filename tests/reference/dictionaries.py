"""Comparison of two dictionaries with loops: cosines one by one, and the best of all pairings."""

import itertools
import math


def cosine(first, second):
    dot = sum(a * b for a, b in zip(first, second, strict=True))
    return dot / math.sqrt(sum(a * a for a in first) * sum(b * b for b in second))


def best_pairing(first, second):
    """The permutation of the second rows whose cosines with the first ones have the largest sum."""
    pairings = itertools.permutations(range(len(second)))
    return max(pairings, key=lambda order: sum(cosine(row, second[j]) for row, j in zip(first, order, strict=True)))
