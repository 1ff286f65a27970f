"""Measures of artifacts by counting, latent by latent; rows are dicts of the latent table's columns."""


def is_nan(x):
    return x != x


def frac_inside(values, low, high):
    return sum(low <= v <= high for v in values) / len(values) if values else float("nan")


def central_interval(values, coverage):
    """Between two quantiles, linearly between the sorted values."""
    ordered = sorted(values)

    def quantile(q):
        place = q * (len(ordered) - 1)
        below = int(place)
        above = min(below + 1, len(ordered) - 1)
        return ordered[below] + (place - below) * (ordered[above] - ordered[below])

    return quantile((1 - coverage) / 2), quantile((1 + coverage) / 2)


def n_below(rows, limit, absolute):
    n = 0
    for row in rows:
        nus = [row["nu_error"], row["nu_reconstruction"]]
        if absolute:
            nus = [abs(nu) for nu in nus]
        n += row["label"] == "chat_only" and not row["dead"] and nus[0] < limit and nus[1] < limit
    return n


def n_common(rows, n):
    """How many of the n best by rank sum are among the n best by delta_norm; no ties."""
    kept = [row for row in rows if not (row["dead"] or is_nan(row["nu_error"]) or is_nan(row["nu_reconstruction"]))]

    def rank(row, column):
        return sum(other[column] <= row[column] for other in kept)

    by_nu = sorted(kept, key=lambda row: rank(row, "nu_error") + rank(row, "nu_reconstruction"))
    by_norm = sorted(kept, key=lambda row: -row["delta_norm"])
    return len({row["latent"] for row in by_nu[:n]} & {row["latent"] for row in by_norm[:n]})
