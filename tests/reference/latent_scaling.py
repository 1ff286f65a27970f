"""Latent Scaling by its definition: one latent, one token, one coordinate at a time, with every residual formed."""


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def target_of(name, j, m, h, f, decoders, b_dec):
    """What latent j is scaled to explain in model m on one token."""
    if name == "activation":
        return h[m]
    kept = range(len(f)) if name == "reconstruction" else [k for k in range(len(f)) if k != j]
    explained = list(b_dec[m])
    for k in kept:
        explained = [value + f[k] * d for value, d in zip(explained, decoders[k][m], strict=True)]
    if name == "reconstruction":
        return explained
    return [value - rest for value, rest in zip(h[m], explained, strict=True)]  # the error with j put back


def beta(name, j, m, probe, tokens, acts, decoders, b_dec):
    """argmin over beta of sum_i |y_i - beta f_ij d_j|^2, in closed form; nan where nothing is asked."""
    return beta_along(decoders[j][probe], name, j, m, tokens, acts, decoders, b_dec)


def beta_along(direction, name, j, m, tokens, acts, decoders, b_dec):
    """The same for any direction in place of d_j."""
    numerator = denominator = 0.0
    for h, f in zip(tokens, acts, strict=True):
        y = target_of(name, j, m, h, f, decoders, b_dec)
        numerator += f[j] * dot(direction, y)
        denominator += f[j] * f[j] * dot(direction, direction)
    return numerator / denominator if denominator > 0 else float("nan")


def improvement(factor, name, j, m, probe, tokens, acts, decoders, b_dec):
    """By which share the mean squared error of the prediction factor * f_ij d_j is below that of predicting 0."""
    with_it = without = 0.0
    for h, f in zip(tokens, acts, strict=True):
        y = target_of(name, j, m, h, f, decoders, b_dec)
        rest = [value - factor * f[j] * d for value, d in zip(y, decoders[j][probe], strict=True)]
        with_it += dot(rest, rest)
        without += dot(y, y)
    return (without - with_it) / without


def free_direction(j, m, tokens, acts, decoders, b_dec):
    """argmin over v of sum_i |y_i - f_ij v|^2 with y the error with j put back, and the noise floor of |v|."""
    targets = [target_of("error", j, m, h, f, decoders, b_dec) for h, f in zip(tokens, acts, strict=True)]
    energy = sum(f[j] ** 2 for f in acts)
    if energy == 0:
        return [float("nan")] * len(targets[0]), float("nan")
    v = [sum(f[j] * y[i] for f, y in zip(acts, targets, strict=True)) / energy for i in range(len(targets[0]))]
    spread = 0.0
    for f, y in zip(acts, targets, strict=True):
        rest = [value - f[j] * part for value, part in zip(y, v, strict=True)]
        spread += f[j] ** 2 * dot(rest, rest)
    return v, spread**0.5 / energy
