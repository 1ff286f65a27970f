"""Basis-free Latent Scaling by its definition: one latent, one token, one coordinate at a time."""


def reconstructed_direction(j, m, acts, decoders, b_dec):
    """Cov(f_j, hhat^m) / Var(f_j), and the length that this vector has by chance."""
    n, width = len(acts), len(b_dec[m])
    written = [[b_dec[m][i] + sum(f[k] * decoders[k][m][i] for k in range(len(f))) for i in range(width)] for f in acts]
    mean_f = sum(f[j] for f in acts) / n
    mean_y = [sum(y[i] for y in written) / n for i in range(width)]
    variance = sum((f[j] - mean_f) ** 2 for f in acts) / n
    v = [
        sum((f[j] - mean_f) * (y[i] - mean_y[i]) for f, y in zip(acts, written, strict=True)) / n / variance
        for i in range(width)
    ]
    spread = 0.0
    for f, y in zip(acts, written, strict=True):
        spread += f[j] ** 2 * sum((value - mean) ** 2 for value, mean in zip(y, mean_y, strict=True))
    return v, spread**0.5 / (n * variance)
