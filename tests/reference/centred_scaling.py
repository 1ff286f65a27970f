"""Latent Scaling within groups by its definition: one token at a time, every deviation formed."""

from tests.reference.latent_scaling import dot, target_of


def deviations(values, groups):
    """Each value minus the mean of its group."""
    result = []
    for value, group in zip(values, groups, strict=True):
        members = [other for other, place in zip(values, groups, strict=True) if place == group]
        result.append(value - sum(members) / len(members))
    return result


def centred_beta(name, j, m, probe, tokens, acts, decoders, b_dec, groups):
    """Regression of <d, y> on f, both as deviations from their group's mean, over |d|^2; nan where f never varies."""
    direction = decoders[j][probe]
    f = deviations([row[j] for row in acts], groups)
    y = [dot(direction, target_of(name, j, m, h, row, decoders, b_dec)) for h, row in zip(tokens, acts, strict=True)]
    numerator = sum(a * b for a, b in zip(f, deviations(y, groups), strict=True))
    denominator = sum(a * a for a in f) * dot(direction, direction)
    return numerator / denominator if denominator > 0 else float("nan")
