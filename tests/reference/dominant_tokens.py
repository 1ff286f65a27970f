"""The rule for tokens that dominate, token by token in Python floats."""

import math


def norms_of(token, d_models):
    """Norm of each model's slice of one token."""
    norms, start = [], 0
    for width in d_models:
        norms.append(math.sqrt(math.fsum(float(x) ** 2 for x in token[start : start + width])))
        start += width
    return norms


def limits_of(tokens, d_models, ratio):
    """`ratio` times the lower median of the norms that are not 0; 0 for a model that is silent."""
    limits = []
    for m in range(len(d_models)):
        norms = sorted(norm for token in tokens if (norm := norms_of(token, d_models)[m]) > 0)
        limits.append(ratio * norms[(len(norms) - 1) // 2] if norms else 0.0)
    return limits


def is_ordinary(token, d_models, limits):
    """True unless the norm exceeds the limit in any model that has one."""
    pairs = zip(norms_of(token, d_models), limits, strict=True)
    return not any(limit > 0 and norm > limit for norm, limit in pairs)


def ordinary_batches(batches, d_models, limits, batch_size):
    """All ordinary tokens in order, cut into full batches, with what was left out."""
    tokens = [token for batch in batches for token in batch.tolist()]
    ordinary = [token for token in tokens if is_ordinary(token, d_models, limits)]
    full = [ordinary[i : i + batch_size] for i in range(0, len(ordinary) - batch_size + 1, batch_size)]
    energy = [[0.0] * len(d_models), [0.0] * len(d_models)]
    for token in tokens:
        for m, norm in enumerate(norms_of(token, d_models)):
            energy[0][m] += norm**2
            energy[1][m] += 0.0 if is_ordinary(token, d_models, limits) else norm**2
    return full, len(tokens) - len(ordinary), [part / whole for whole, part in zip(*energy, strict=True)]
