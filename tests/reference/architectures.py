"""TopK, Matryoshka and JumpReLU crosscoders one number at a time: selections, losses, the rectangle's gradient."""

import math

from tests.reference.crosscoder import reconstruct, reconstruction_loss


def select_topk(acts, norms, k):
    """Per token the activations with the k largest positive scores."""
    result = []
    for row in acts:
        ranked = sorted(range(len(row)), key=lambda j: row[j] * norms[j], reverse=True)[:k]
        result.append([f if j in ranked and f * norms[j] > 0 else 0.0 for j, f in enumerate(row)])
    return result


def threshold_of_batch(acts, norms, k):
    """The smallest of the batch's floor(batch * k) largest positive scores."""
    scores = sorted((f * norms[j] for row in acts for j, f in enumerate(row) if f * norms[j] > 0), reverse=True)
    return scores[: math.floor(len(acts) * k)][-1]


def inner_losses(tokens, f, decoders, b_dec, widths, kind):
    """Reconstruction loss of the first latents alone, for every width."""
    losses = []
    for width in widths:
        alone = [[value if j < width else 0.0 for j, value in enumerate(row)] for row in f]
        losses.append(reconstruction_loss(tokens, [reconstruct(row, decoders, b_dec) for row in alone], kind))
    return losses


def jump(pre, thresholds):
    """Pre-activations above their threshold, 0 elsewhere."""
    return [[value if value > t else 0.0 for value, t in zip(row, thresholds, strict=True)] for row in pre]


def sparsity_loss(pre, thresholds, norms, mode, scale, target):
    """Mean over tokens of the number of active latents, of the sum of tanh(scale * score), or of the quadratic."""
    total = 0.0
    for row in jump(pre, thresholds):
        active = sum(value > 0 for value in row)
        if mode == "tanh":
            total += sum(math.tanh(scale * value * s) for value, s in zip(row, norms, strict=True))
        else:
            total += active if mode == "step" else 2 / target * (active - target) ** 2
    return total / len(pre)


def threshold_gradient(pre, thresholds, upstream_of_value, upstream_of_step, bandwidth):
    """d loss / d threshold_j by the rectangle: both gradients per (token, latent) come from the caller."""
    result = []
    for j, t in enumerate(thresholds):
        total = 0.0
        for row, of_value, of_step in zip(pre, upstream_of_value, upstream_of_step, strict=True):
            if abs((row[j] - t) / bandwidth) < 0.5:
                total -= t / bandwidth * of_value[j] + of_step[j] / bandwidth
        result.append(total)
    return result
