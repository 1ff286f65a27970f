"""The latents of one token and an answer under edits, by loops over hooks and latents."""

import torch


def active_latents(crosscoder, h):
    """Latent, activation and each model's share, strongest first, at one stacked activation."""
    found, W_enc = [], crosscoder.W_enc.detach()
    width = len(h) // 2
    for j in range(crosscoder.cfg.d_sae):
        encoder = W_enc[:, j]
        shares = [sum(float(encoder[i] * h[i]) for i in range(m * width, (m + 1) * width)) for m in range(2)]
        hidden = sum(shares) + float(crosscoder.b_enc[j])
        if hidden > float(crosscoder.threshold[j]):
            found.append((j, hidden, shares))
    return sorted(found, key=lambda each: -each[1])


def greedy_answer(model, ids, n, end):
    """Every next token from a full pass of one model."""
    written = []
    for _ in range(n):
        logits = model(torch.tensor([[*ids, *written]]))[0, -1]
        written.append(int(logits.argmax()))
        if written[-1] == end:
            break
    return written
