"""Loop-written twins of the search for phrases, and of what carriers write and tell apart."""

from math import comb

import torch
from torch import Tensor


def has(words: list[str], phrase: tuple[str, ...]) -> bool:
    found = False
    for start in range(len(words)):
        found = found or words[start : start + len(phrase)] == list(phrase)
    return found


def best_phrase(own: list[list[str]], other: list[list[str]], longest: int, least: int) -> tuple[int, tuple[str, ...]]:
    """The largest (net prompts) x (words) over all phrases of the writer's answers, tried one by one."""
    best = (0, ())
    for words in own:
        for start in range(len(words)):
            for end in range(start + 1, min(len(words), start + longest) + 1):
                phrase = tuple(words[start:end])
                if phrase == ("^",):
                    continue
                n_with = n_against = 0
                for mine, theirs in zip(own, other, strict=True):
                    if has(mine, phrase) and not has(theirs, phrase):
                        n_with += 1
                    if has(theirs, phrase) and not has(mine, phrase):
                        n_against += 1
                net = n_with - n_against
                if net >= least and 2 * net >= n_with + n_against:
                    best = max(best, (net * len(phrase), phrase))
    return best


def sign_test(n_with: int, n_against: int) -> float:
    """Probability of at least `n_with` heads in fair throws."""
    n = n_with + n_against
    return sum(comb(n, k) for k in range(n_with, n + 1)) / 2**n


def false_discovery_rates(p_values: list[float]) -> list[float]:
    """Benjamini and Hochberg: the least p n / rank over all p at least as large."""
    n = len(p_values)
    rates: list[float] = []
    for p in p_values:
        candidates = []
        for other in p_values:
            if other >= p:
                rank = sum(1 for each in p_values if each <= other)
                candidates.append(min(1.0, other * n / rank))
        rates.append(min(candidates))
    return rates


def written(
    acts: Tensor, base_decoder: Tensor, chat_decoder: Tensor, difference: Tensor, bias_difference: Tensor
) -> Tensor:
    """Share of each latent in mean(chat - base) - (b_chat - b_base), prompt by prompt."""
    n_prompts, d_sae = acts.shape
    target = torch.zeros(difference.shape[1], dtype=torch.float64)
    for prompt in range(n_prompts):
        target += difference[prompt].double() / n_prompts
    target -= bias_difference.double()
    shares = torch.zeros(d_sae, dtype=torch.float64)
    for latent in range(d_sae):
        for prompt in range(n_prompts):
            direction = (chat_decoder[latent] - base_decoder[latent]).double()
            shares[latent] += acts[prompt, latent].double() * (direction @ target) / n_prompts
    return shares / (target @ target)


def auroc_of_carriers(crosscoder, contrast) -> float:
    """Carriers by their shares where the contrast is not held out, then pairs of held-out prompts, one by one."""
    groups = {True: {True: [], False: []}, False: {True: [], False: []}}
    for row, positive, held_out in zip(contrast.activations, contrast.positive, contrast.held_out, strict=True):
        acts = crosscoder.encode(row[None])[0].detach().double()
        base, chat = (part.double() for part in crosscoder.layout.split(row))
        groups[bool(held_out)][bool(positive)].append((acts, chat - base))
    means = {}
    for positive, rows in groups[False].items():
        means[positive] = [sum(row[part] for row in rows) / len(rows) for part in range(2)]
    change, difference = (means[True][part] - means[False][part] for part in range(2))
    base_decoder, chat_decoder = (decoder.detach().double() for decoder in crosscoder.decoders)
    shares = {}
    for latent in range(len(change)):
        if change[latent] > 0:
            along = float((chat_decoder[latent] - base_decoder[latent]) @ difference)
            share = float(change[latent]) * along / float(difference @ difference)
            if share > 0:
                shares[latent] = (share, along)
    total, carriers, reached = sum(share for share, _ in shares.values()), [], 0.0
    for latent in sorted(shares, key=lambda each: -shares[each][0]):
        if reached >= 0.98 * total:
            break
        carriers.append(latent)
        reached += shares[latent][0]
    scores = {}
    for positive, rows in groups[True].items():
        scores[positive] = [sum(float(acts[latent]) * shares[latent][1] for latent in carriers) for acts, _ in rows]
    won = 0.0
    for high in scores[True]:
        for low in scores[False]:
            won += 1.0 if high > low else 0.5 if high == low else 0.0
    return won / (len(scores[True]) * len(scores[False]))
