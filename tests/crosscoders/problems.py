"""A random encoder and tokens, for what selects active pairs."""

import torch

B, D_IN, D_SAE = 30, 6, 40


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def problem(seed=0, dtype=torch.float64):
    """x, W_enc, b_enc and norms, one of which is 0."""
    norms = draw(D_SAE, seed=seed + 3, dtype=dtype).abs()
    norms[3] = 0
    return (
        draw(B, D_IN, seed=seed, dtype=dtype),
        draw(D_IN, D_SAE, seed=seed + 1, dtype=dtype),
        draw(D_SAE, seed=seed + 2, dtype=dtype),
        norms,
    )
