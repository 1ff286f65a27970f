"""Which latents write what tells two groups of prompts apart, one number at a time."""

import math


def mean(values):
    return sum(values) / len(values)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def difference_of_means(positive, negative):
    """Rows are lists of numbers."""
    columns = range(len(positive[0]))
    return [mean([row[i] for row in positive]) - mean([row[i] for row in negative]) for i in columns]


def shares(positive_acts, negative_acts, directions, contrast):
    changes = difference_of_means(positive_acts, negative_acts)
    return [
        change * dot(row, contrast) / dot(contrast, contrast) for change, row in zip(changes, directions, strict=True)
    ]


def delta_contrast(positive_acts, negative_acts, base, chat):
    changes = difference_of_means(positive_acts, negative_acts)
    norms = []
    for decoders in (base, chat):
        columns = range(len(decoders[0]))
        written = [sum(change * row[i] for change, row in zip(changes, decoders, strict=True)) for i in columns]
        norms.append(math.sqrt(dot(written, written)))
    return 0.5 * ((norms[1] - norms[0]) / max(norms) + 1)


def auroc(positive, negative):
    """Of one latent: how often a positive prompt's activation beats a negative one's; ties count half."""
    wins = [1.0 if up > down else 0.5 if up == down else 0.0 for up in positive for down in negative]
    return mean(wins)


def standard_error(positive, negative):
    def variance(values):
        return sum((value - mean(values)) ** 2 for value in values) / (len(values) - 1)

    return math.sqrt(variance(positive) / len(positive) + variance(negative) / len(negative))
