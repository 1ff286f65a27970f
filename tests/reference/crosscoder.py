"""A crosscoder for two models, one number at a time: forward pass, scores, selection, losses, folds."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def norm(a):
    return math.sqrt(dot(a, a))


def pre_activations(h, encoders, b_enc):
    """h[m] is model m's activation, encoders[j][m] latent j's encoder in model m."""
    return [
        sum(dot(encoder[m], h[m]) for m in range(len(h))) + bias for encoder, bias in zip(encoders, b_enc, strict=True)
    ]


def relu(values):
    return [max(value, 0.0) for value in values]


def reconstruct(f, decoders, b_dec):
    """decoders[j][m] is latent j's decoder in model m; one list per model comes back."""
    result = [list(bias) for bias in b_dec]
    for activation, decoder in zip(f, decoders, strict=True):
        for m, direction in enumerate(decoder):
            for i, value in enumerate(direction):
                result[m][i] += activation * value
    return result


def score_norm(decoder, score):
    norms = [norm(direction) for direction in decoder]
    mixed = norm(norms) + 0.1 * sum(norms)
    return {"sum": sum(norms), "l2": norm(norms), "max": max(norms), "mixed": mixed, "none": 1.0}[score]


def select_batchtopk(acts, norms, k):
    """Per token the activations that survive: the floor(batch * k) largest positive scores of the whole batch."""
    scores = [(f * norms[j], i, j) for i, row in enumerate(acts) for j, f in enumerate(row) if f * norms[j] > 0]
    kept = {(i, j) for _, i, j in sorted(scores, reverse=True)[: math.floor(len(acts) * k)]}
    return [[f if (i, j) in kept else 0.0 for j, f in enumerate(row)] for i, row in enumerate(acts)]


def reconstruction_loss(h, h_hat, kind):
    """Mean over tokens of: the models' mean error norm (l2_norm), or their summed squared errors (mse)."""
    total = 0.0
    for token, token_hat in zip(h, h_hat, strict=True):
        errors = [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(token, token_hat, strict=True)]
        if kind == "l2_norm":
            total += sum(norm(error) for error in errors) / len(errors)
        else:
            total += sum(dot(error, error) for error in errors)
    return total / len(h)


def l1_penalty(acts, norms):
    return sum(sum(f * s for f, s in zip(row, norms, strict=True)) for row in acts) / len(acts)


def auxiliary_loss(h, h_hat, acts, decoders, norms, dead, k_aux):
    """Unexplained share of the residual's variance when each token's best dead latents reconstruct it."""
    residuals = [
        [a - b for x, y in zip(token, token_hat, strict=True) for a, b in zip(x, y, strict=True)]
        for token, token_hat in zip(h, h_hat, strict=True)
    ]
    n, width = len(residuals), len(residuals[0])
    mean = [sum(row[i] for row in residuals) / n for i in range(width)]
    unexplained = total = 0.0
    for row, residual in zip(acts, residuals, strict=True):
        ranked = sorted((j for j in range(len(row)) if dead[j]), key=lambda j: row[j] * norms[j], reverse=True)
        guess = [0.0] * width
        for j in ranked[:k_aux]:
            direction = [value for part in decoders[j] for value in part]
            guess = [g + row[j] * value for g, value in zip(guess, direction, strict=True)]
        unexplained += sum((r - g) ** 2 for r, g in zip(residual, guess, strict=True))
        total += sum((r - m) ** 2 for r, m in zip(residual, mean, strict=True))
    return unexplained / total
