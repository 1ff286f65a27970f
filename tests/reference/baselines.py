"""Directions in a difference of activations, one number at a time."""


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def dot(x, y):
    return sum(a * b for a, b in zip(x, y, strict=True))


def minus(x, y):
    return [a - b for a, b in zip(x, y, strict=True)]


def coordinate(row, direction, bias):
    return dot(minus(row, bias), direction) / dot(direction, direction)


def explained(rows, activations, direction, bias):
    """The share of the squared length, after the bias, that one direction takes away."""
    before = after = 0.0
    for row, act in zip(rows, activations, strict=True):
        y = minus(row, bias)
        rest = minus(y, [act * x for x in direction])
        before += dot(y, y)
        after += dot(rest, rest)
    return 1 - after / before


def latent(row, encoder, encoder_bias, bias, threshold):
    pre = dot(minus(row, bias), encoder) + encoder_bias
    return pre if pre > max(threshold, 0) else 0.0


def contrast_share(positive, negative, activation, direction):
    contrast = minus(mean(positive), mean(negative))
    change = sum(map(activation, positive)) / len(positive) - sum(map(activation, negative)) / len(negative)
    return change * dot(direction, contrast) / dot(contrast, contrast)
