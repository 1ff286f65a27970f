"""Examples of one latent with everything in memory, one token at a time."""

from math import nan

from tests.reference.crosscoder import dot


def shares(h, encoder):
    """h[m] is model m's activation, encoder[m] the latent's encoder in model m."""
    return [dot(encoder[m], h[m]) for m in range(len(h))]


def contexts(prompts, encoder, b_enc, threshold, documents, before, after, keep):
    """Every context in which the latent is on, in order; prompts[row][position][m] is an activation.

    Where keep[row][position] is False, there is no score: such tokens are shown between others, and nothing else.
    """
    found = []
    n_kept = 0
    for row, prompt in enumerate(prompts):
        parts = [shares(h, encoder) for h in prompt]
        pre = [sum(part) + b_enc for part in parts]
        scores = [value if value > max(0.0, threshold) else 0.0 for value in pre]
        for first, last in spans(documents[row]):
            inside = [position for position in range(first, last + 1) if keep[row][position]]
            n_before, n_kept = n_kept, n_kept + len(inside)
            if not inside:
                continue
            peak = max(inside, key=lambda position: (scores[position], -position))
            if documents[row][first] < 0 or scores[peak] == 0:
                continue
            around = range(peak - before, peak + after + 1)
            shown = [position for position in around if inside[0] <= position <= inside[-1]]
            found.append(
                {
                    "prompt": row,
                    "position": peak,
                    "first": n_before,
                    "score": scores[peak],
                    "positions": shown,
                    "scores": [scores[position] if position in inside else nan for position in shown],
                    "shares": [parts[position] if position in inside else [nan] * len(encoder) for position in shown],
                }
            )
    return found


def spans(ids):
    """First and last position of every document of a prompt."""
    result = []
    for position, name in enumerate(ids):
        if position > 0 and name == ids[position - 1]:
            result[-1][1] = position
        else:
            result.append([position, position])
    return result


def top(found, n):
    return sorted(found, key=lambda context: (-context["score"], context["prompt"], context["position"]))[:n]


def bands(found, seed, latent, n_quantiles, n_per_quantile):
    """The contexts with the largest random numbers, by score, as evenly as possible over the bands."""
    drawn = sorted(found, key=lambda context: -random_number(seed, latent, context["first"]))
    sample = sorted(drawn[: n_quantiles * n_per_quantile], key=lambda context: context["score"])
    result = [[] for _ in range(n_quantiles)]
    for rank, context in enumerate(sample):
        result[int(rank / len(sample) * n_quantiles + 1e-9)].append(context)
    return result


def random_number(*parts):
    """SplitMix64, each part added to what the ones before it became, without the top bit."""
    state = 0
    for part in parts:
        state = splitmix64(state + part)
    return state % 2**63


def splitmix64(x):
    z = (x + 0x9E3779B97F4A7C15) % 2**64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)
