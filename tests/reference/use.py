"""The swap readout by its definition: one token, one slot and one latent at a time."""

import math


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def mean(rows):
    return [sum(column) / len(rows) for column in zip(*rows, strict=True)]


def code(slots, encoders, b_enc, thresholds):
    """The scores of one token, whose activation in each slot is given."""
    scores = []
    for j, (bias, threshold) in enumerate(zip(b_enc, thresholds, strict=True)):
        pre = bias + sum(dot(h, encoder[j]) for h, encoder in zip(slots, encoders, strict=True))
        scores.append(pre if pre > max(threshold, 0) else 0.0)
    return scores


def alone(token, m, means, scales, encoders, b_enc, thresholds, own=None):
    """The code of model m, whose deviation from its mean stands in every slot, in the slot's units.

    Args:
        own: latents that write into model m alone, their decoders in it, and the mean joint code; in the other slots,
            what they write on this token is taken out, but for themselves.
    """
    nothing = [0.0] * len(token[m])
    if own is None:
        return code(_slots(token, m, means, scales, nothing), encoders, b_enc, thresholds)
    written = nothing
    latents, decoder, mean_code = own
    joint = code(token, encoders, b_enc, thresholds)
    for j in latents:
        written = [w + (joint[j] - mean_code[j]) * d for w, d in zip(written, decoder[j], strict=True)]
    scores, own_scores = (
        code(_slots(token, m, means, scales, out), encoders, b_enc, thresholds) for out in (written, nothing)
    )
    return [own_scores[j] if j in latents else scores[j] for j in range(len(scores))]


def _slots(token, m, means, scales, written):
    slots, nothing = [], [0.0] * len(token[m])
    for slot, slot_mean in enumerate(means):
        factor, out = scales[m] / scales[slot], nothing if slot == m else written
        of_slot = zip(slot_mean, token[m], means[m], out, strict=True)
        slots.append([c + factor * (h - mean_h - w) for c, h, mean_h, w in of_slot])
    return slots


def without(token, m, cell_means, encoders, b_enc, thresholds):
    """The joint code when model m's activation is the mean of the token's cell."""
    slots = [cell_means[slot] if slot == m else h for slot, h in enumerate(token)]
    return code(slots, encoders, b_enc, thresholds)


def level(first_firings):
    return sum(f**3 for f in first_firings) / sum(f**2 for f in first_firings)


def strong_codes(codes, n_first, share):
    """Codes of two models (model, token, latent) with weak firings set to 0.

    A latent's level is measured on its first firings, token by token, the first model's before the second's.
    """
    n_tokens, n_latents = len(codes[0]), len(codes[0][0])
    kept = [[[0.0] * n_latents for _ in range(n_tokens)] for _ in codes]
    for j in range(n_latents):
        firings = [codes[m][t][j] for t in range(n_tokens) for m in range(2) if codes[m][t][j] > 0]
        if not firings:
            continue
        bound = share * level(firings[:n_first])
        for m in range(2):
            for t in range(n_tokens):
                if codes[m][t][j] >= bound:
                    kept[m][t][j] = codes[m][t][j]
    return kept


def log_ratio(first, second, added):
    return math.log((second + added) / (first + added))


def columns(strong, j, tokens):
    """Numbers of latent j on some of the tokens, from codes with weak firings set to 0."""
    values = [[codes[t][j] for t in tokens if codes[t][j] > 0] for codes in strong]
    counts, sums = [len(v) for v in values], [sum(v) for v in values]
    if sum(counts) == 0:
        return {"n_strong": counts, "rate": [0.0, 0.0], "log_use_ratio": math.nan, "log_rate_ratio": math.nan}
    half = sum(sums) / sum(counts) / 2
    return {
        "n_strong": counts,
        "rate": [n / len(tokens) for n in counts],
        "log_use_ratio": log_ratio(*sums, half),
        "log_rate_ratio": log_ratio(*counts, 0.5),
    }


def moved(joint, replaced, j):
    """How far the joint code of latent j moves, over its sum."""
    return sum(abs(f[j] - g[j]) for f, g in zip(joint, replaced, strict=True)) / sum(f[j] for f in joint)
