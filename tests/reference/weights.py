"""What weights alone tell, by loops over lists."""

import math


def norm(vector):
    return math.sqrt(sum(x * x for x in vector))


def cosine(a, b):
    lengths = norm(a) * norm(b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths > 0 else math.nan


def parts(row, widths):
    """A row of the stack, cut into the sources'."""
    cut, first = [], 0
    for width in widths:
        cut.append(row[first : first + width])
        first += width
    return cut


def delta_norm(norms, first, second):
    """Delta_norm of two of a latent's norms; nan where both are below 0.2 times its largest."""
    if max(norms[first], norms[second]) < 0.2 * max(norms) or max(norms) == 0:
        return math.nan
    return ((norms[second] - norms[first]) / max(norms[first], norms[second]) + 1) / 2
