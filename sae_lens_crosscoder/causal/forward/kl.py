"""The Kullback-Leibler divergence between next-token distributions, in nats."""

import torch
from jaxtyping import Float
from torch import Tensor


def log_probs(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    """Log-probabilities in nats, from a softmax in float32 whatever the models' dtype."""
    return logits.float().log_softmax(dim=-1)


def kl_divergence(
    log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"], *, dtype: torch.dtype | None = None
) -> Float[Tensor, "*batch"]:
    """`KL(p || q)` in nats at every position, from the log-probabilities of both distributions.

    Args:
        dtype: the type the vocabulary is summed in; by default the inputs'.

    >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> round(float(kl_divergence(p, q)), 4), float(kl_divergence(p, p))
    (0.1438, 0.0)
    """
    return (log_p.exp() * (log_p - log_q)).sum(dim=-1, dtype=dtype)
