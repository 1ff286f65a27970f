"""q-values against null runs by their definition: one threshold and one kind of null pair at a time."""


def least_rates(scores, by_chance):
    """The least estimated false discovery rate over every threshold at or below each score."""

    def rate(threshold):
        n_null = sum(score >= threshold for score in by_chance)
        n_real = sum(score >= threshold for score in scores)
        return (1 + n_null) / len(by_chance) / (n_real / len(scores))

    return [min(1.0, min(rate(t) for t in scores if t <= score)) for score in scores]


def largest_rates(scores, runs):
    """The largest of the least rates over the kinds of null runs, given as (kind, scores); a kind is pooled."""
    largest = [0.0] * len(scores)
    for kind in {kind for kind, _ in runs}:
        pooled = [score for of, run in runs if of == kind for score in run]
        largest = [max(pair) for pair in zip(largest, least_rates(scores, pooled), strict=True)]
    return largest
