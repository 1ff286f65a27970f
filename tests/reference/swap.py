"""A latent's code swapped between two models, one token at a time, from plain activations and logits."""

import math

from tests.reference import use


def kl(log_p, log_q):
    return sum(math.exp(p) * (p - q) for p, q in zip(log_p, log_q, strict=True))


def codes(tokens, used, scales, encoders, b_enc, thresholds, own=((), ()), decoders=None):
    """Codes of each model alone (model, token, latent), centred on the means over the used tokens.

    Args:
        tokens: for each token, the activation of each model.
        own: for each model, the latents that write into it alone.
        decoders: of each model, if there are any such latents.
    """
    kept = [token for token, is_used in zip(tokens, used, strict=True) if is_used]
    means = [use.mean([token[m] for token in kept]) for m in range(2)]
    settings = (means, scales, encoders, b_enc, thresholds)
    mean_code = use.mean([use.code(token, encoders, b_enc, thresholds) for token in kept])
    taken_out = [(own[m], decoders[m], mean_code) if own[m] else None for m in range(2)]
    nothing = [0.0] * len(b_enc)
    return [
        [
            use.alone(t, m, *settings, taken_out[m]) if is_used else nothing
            for t, is_used in zip(tokens, used, strict=True)
        ]
        for m in range(2)
    ]


def edited(activation, own, others, decoder, latent):
    """One model's activation where it uses the latent as the other model does."""
    return [
        [h + (o[latent] - f[latent]) * d for h, d in zip(row, decoder[latent], strict=True)]
        for row, f, o in zip(activation, own, others, strict=True)
    ]


def mean_kl(log_ps, log_qs, used):
    values = [kl(p, q) for p, q, is_used in zip(log_ps, log_qs, used, strict=True) if is_used]
    return sum(values) / len(values)
