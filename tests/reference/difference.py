"""What each latent accounts for of the difference between two models' activations, one number at a time."""


def share(score, to_base, to_chat, base, chat):
    """The latent's part of the difference, as a multiple of it, along it."""
    length = sum((c - b) ** 2 for b, c in zip(base, chat, strict=True))
    parts = zip(to_base, to_chat, base, chat, strict=True)
    return sum(score * (toward_chat - toward_base) * (c - b) for toward_base, toward_chat, b, c in parts) / length
