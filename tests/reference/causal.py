"""Interventions on latents, one token and one number at a time."""

from tests.reference.crosscoder import pre_activations


def activations(h, weights, threshold):
    """f of every latent on one token; h[m] is model m's activation."""
    values = pre_activations(h, weights.encoders, weights.b_enc)
    return [value if value > max(0.0, limit) else 0.0 for value, limit in zip(values, threshold, strict=True)]


def written(f, weights, latents, m):
    """What some latents write into model m."""
    total = [0.0] * len(weights.b_dec[m])
    for j in latents:
        for i, value in enumerate(weights.decoders[j][m]):
            total[i] += f[j] * value
    return total


def edited(h, weights, threshold, latents, how, models, coefficient=1.0, max_activation=None, with_bias=False):
    """Both models' activations after an intervention on `models`, 0 base and 1 chat."""
    f = activations(h, weights, threshold)
    if how == "steer":
        f = dict(zip(latents, max_activation, strict=True))
    result = [list(part) for part in h]
    for m in models:
        own = written(f, weights, latents, m)
        other = written(f, weights, latents, 1 - m) if how in ("replace", "add") else own
        bias, other_bias = weights.b_dec[m], weights.b_dec[1 - m] if how == "replace" else weights.b_dec[m]
        for i in range(len(own)):
            result[m][i] += {
                "reconstruct": coefficient * (own[i] + bias[i] - h[m][i]),
                "replace": coefficient * (other[i] - own[i]),
                "add": coefficient * other[i],
                "ablate": -coefficient * own[i],
                "scale": coefficient * own[i] - own[i],
                "steer": coefficient * own[i],
            }[how]
            if with_bias:
                result[m][i] += coefficient * {"replace": other_bias[i] - bias[i], "ablate": -bias[i]}[how]
    return result
