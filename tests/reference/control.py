"""The presence of a latent in a control model, by its definition: one latent, one group and one token at a time."""


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def covariance(f, along, groups):
    """Sum over tokens of the product of both deviations from their group's means."""
    total = 0.0
    for group in set(groups):
        inside = [i for i, g in enumerate(groups) if g == group]
        f_mean = sum(f[i] for i in inside) / len(inside)
        along_mean = sum(along[i] for i in inside) / len(inside)
        total += sum((f[i] - f_mean) * (along[i] - along_mean) for i in inside)
    return total


def presence(j, acts, decoder, own, control, groups):
    """Factor of the control model's activation along a decoder, over that of the decoder's own model."""
    f = [row[j] for row in acts]
    control_along, own_along = ([dot(decoder, h) for h in rows] for rows in (control, own))
    return covariance(f, control_along, groups) / covariance(f, own_along, groups)
