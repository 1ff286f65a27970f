"""KL that a patch at one hook leaves, one prompt at a time, without padding, by a plain TransformerLens hook."""

import math


def kl(p_logits, q_logits):
    """KL(p || q) of two lists of logits."""
    p, q = ([x - max(logits) for x in logits] for logits in (p_logits, q_logits))
    log_p, log_q = ([x - math.log(sum(map(math.exp, logits))) for x in logits] for logits in (p, q))
    return sum(math.exp(a) * (a - b) for a, b in zip(log_p, log_q, strict=True))


def kl_left(base, chat, prompt, hook_name, positions):
    """KL after every token of a prompt (1, pos), with chat's activation in base at the given positions."""
    activation = chat.run_with_cache(prompt)[1][hook_name]

    def patch(value, hook):
        value = value.clone()
        for position in positions:
            value[:, position] = activation[:, position]
        return value

    patched = base.run_with_hooks(prompt, fwd_hooks=[(hook_name, patch)])[0].tolist()
    return [kl(p, q) for p, q in zip(chat(prompt)[0].tolist(), patched, strict=True)]


def share(left, before):
    return 1 - sum(left) / sum(before)


def best_cut(kl):
    """Number of changed prompts, and the share of the variance of sqrt(KL) between the groups, over all cuts."""
    values = sorted((math.sqrt(max(x, 0)) for x in kl), reverse=True)
    mean = sum(values) / len(values)
    total = sum((x - mean) ** 2 for x in values)
    best = (0, -1.0)
    for n in range(2, len(values)):
        between = sum(len(part) * (sum(part) / len(part) - mean) ** 2 for part in (values[:n], values[n:]))
        if between / total > best[1] + 1e-12:
            best = (n, between / total)
    return best
