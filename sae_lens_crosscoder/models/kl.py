"""The Kullback-Leibler divergence between next-token distributions, in nats."""

from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments


@validate_arguments
def log_probs(logits: Float[Tensor, "*batch d_vocab"]) -> Float[Tensor, "*batch d_vocab"]:
    """Log-probabilities in nats, from a softmax in float32 whatever the models' dtype."""
    return logits.float().log_softmax(dim=-1)


@validate_arguments
def kl_divergence(
    log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch"]:
    """`KL(p || q)` in nats at every position, from the log-probabilities of both distributions.

    >>> import torch
    >>> p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    >>> round(float(kl_divergence(p, q)), 4), float(kl_divergence(p, p))
    (0.1438, 0.0)
    """
    return kl_terms(log_p, log_q).sum(dim=-1)


def kl_terms(
    log_p: Float[Tensor, "*batch d_vocab"], log_q: Float[Tensor, "*batch d_vocab"]
) -> Float[Tensor, "*batch d_vocab"]:
    """The terms of `KL(p || q)` per token of the vocabulary, for sums in another precision."""
    return log_p.exp() * (log_p - log_q)
