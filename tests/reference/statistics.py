"""Statistics of one latent, one token at a time; nan where nothing is counted."""

NAN = float("nan")


def statistics(scores):
    """Of the latent's score on every token of a place."""
    n_active, total, largest = 0, 0.0, 0.0
    for score in scores:
        if score > 0:
            n_active += 1
            total += score
            largest = score if score > largest else largest
    return {
        "n_active": n_active,
        "frequency": n_active / len(scores) if scores else NAN,
        "max_score": largest if scores else NAN,
        "mean_score": total / n_active if n_active else NAN,
        "dead": n_active == 0,
    }


def frac_template(scores, groups, sources):
    """Active template tokens over active tokens, both without BOS in the sources that have a template."""
    has_template = {
        source for group, source in zip(groups, sources, strict=True) if group is not None and "template" in group
    }
    n_template = n_active = 0
    for score, group, source in zip(scores, groups, sources, strict=True):
        if group is None or group == "bos" or source not in has_template or score <= 0:
            continue
        n_active += 1
        n_template += "template" in group
    return n_template / n_active if n_active else NAN


def mean(values):
    return sum(values) / len(values)


def pearson(x, y):
    dx, dy = [a - mean(x) for a in x], [b - mean(y) for b in y]
    product = sum(a * b for a, b in zip(dx, dy, strict=True))
    return product / (sum(a * a for a in dx) * sum(b * b for b in dy)) ** 0.5


def ranks(values):
    """From 1; equal values share the mean of their ranks."""
    return [mean([i + 1 for i, other in enumerate(sorted(values)) if other == value]) for value in values]
