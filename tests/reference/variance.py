"""Variance explained and mean norms of a whole set of tokens, one number at a time."""

import math


def variance(column):
    mean = sum(column) / len(column)
    return sum((value - mean) ** 2 for value in column) / len(column)


def variance_explained(h, h_hat):
    """1 - summed variance of the residual over summed variance of the activations; nan where nothing varies."""
    total = sum(variance(column) for column in zip(*h, strict=True))
    residual = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(h, h_hat, strict=True)]
    unexplained = sum(variance(column) for column in zip(*residual, strict=True))
    return 1 - unexplained / total if total > 0 else float("nan")


def variance_explained_of_difference(h, h_hat, width):
    """Variance explained of chat - base, where each model is `width` wide and base comes first."""

    def differences(rows):
        return [[row[width + i] - row[i] for i in range(width)] for row in rows]

    return variance_explained(differences(h), differences(h_hat))


def mean_norm(rows):
    return sum(math.sqrt(sum(value * value for value in row)) for row in rows) / len(rows)
