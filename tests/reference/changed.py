"""Turned latents and the energy that they write, one number at a time."""

import math

from tests.reference.contrasts import difference_of_means, dot, mean


def norm(vector):
    return math.sqrt(dot(vector, vector))


def minus(a, b):
    return [x - y for x, y in zip(a, b, strict=True)]


def rho(base, chat):
    return [norm(minus(c, b)) / max(norm(b), norm(c)) for b, c in zip(base, chat, strict=True)]


def written_energy(acts, base_rows, chat_rows, base, chat):
    """Of every latent: the mean over rows of what it writes along that row's difference, over the mean energy."""
    energy = mean([dot(row, row) for row in base_rows])
    result = []
    for j in range(len(base)):
        delta = minus(chat[j], base[j])
        rows = zip(acts, base_rows, chat_rows, strict=True)
        result.append(mean([f[j] * dot(delta, minus(c, b)) for f, b, c in rows]) / energy)
    return result


def written_mean(positive_acts, negative_acts, base_groups, chat_groups, base, chat):
    """u of every latent; each group is (positive rows, negative rows)."""
    of_base, of_chat = difference_of_means(*base_groups), difference_of_means(*chat_groups)
    contrast = minus(of_chat, of_base)
    unit = [x / norm(contrast) for x in contrast]
    changes = difference_of_means(positive_acts, negative_acts)
    return [changes[j] * dot(minus(chat[j], base[j]), unit) / norm(of_base) for j in range(len(base))]


def tail_p(value, decoys, tail=0.05):
    ordered = sorted(decoys)
    place = (len(ordered) - 1) * (1 - tail)
    low = math.floor(place)
    start = ordered[low] + (place - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
    if value <= start:
        return max(1, sum(decoy >= value for decoy in decoys)) / len(decoys)
    beyond = [decoy - start for decoy in decoys if decoy > start]
    return tail * math.exp(-(value - start) / mean(beyond))


def benjamini_hochberg(p_values):
    """The least level at which each would be rejected, tried out at every level that could matter."""
    n = len(p_values)
    ranked = sorted(p_values)
    levels = sorted(p * n / (rank + 1) for rank, p in enumerate(ranked))
    result = []
    for p in p_values:
        for level in levels:
            passing = [rank for rank in range(n) if ranked[rank] <= level * (rank + 1) / n * (1 + 1e-12)]
            if passing and p <= ranked[max(passing)]:
                result.append(min(1, level))
                break
        else:
            result.append(1.0)
    return result


def relative_change(base_groups, chat_groups):
    of_base, of_chat = difference_of_means(*base_groups), difference_of_means(*chat_groups)
    return norm(minus(of_chat, of_base)) / norm(of_base)
