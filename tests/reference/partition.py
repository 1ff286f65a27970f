"""Selection with a budget for exclusive latents and one for shared ones, one number at a time."""

import math


def selected_pairs(acts, norms, n_exclusive, k, k_exclusive):
    """Pairs (token, latent) that survive: each group's largest positive scores over the whole batch."""
    kept = set()
    for group, budget in (
        (range(n_exclusive), math.floor(len(acts) * k_exclusive)),
        (range(n_exclusive, len(norms)), math.floor(len(acts) * (k - k_exclusive))),
    ):
        scores = [(acts[i][j] * norms[j], i, j) for i in range(len(acts)) for j in group if acts[i][j] * norms[j] > 0]
        scores.sort(reverse=True)
        kept.update((i, j) for _, i, j in scores[:budget])
    return kept


def masked(rows, n_base, n_chat, width_base):
    """Rows of weights with the other model's half of exclusive latents set to 0."""
    result = []
    for j, row in enumerate(rows):
        row = list(row)
        for i in range(len(row)):
            is_base = i < width_base
            if (j < n_base and not is_base) or (n_base <= j < n_base + n_chat and is_base):
                row[i] = 0.0
        result.append(row)
    return result
