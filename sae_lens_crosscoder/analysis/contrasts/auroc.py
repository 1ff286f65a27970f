"""Area under the ROC curve: separation of two groups of prompts by a latent's activation."""

import torch
from jaxtyping import Float
from torch import Tensor


def auroc(
    positive: Float[Tensor, "positives d_sae"], negative: Float[Tensor, "negatives d_sae"]
) -> Float[Tensor, " d_sae"]:
    """Area under the ROC curve of every latent: 1 separates positives from negatives, 1/2 is chance.

    >>> auroc(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [0.0]])).item()
    0.75
    """
    # By rank, because (positives, negatives, d_sae) comparisons would not fit into memory.
    ranked, values = negative.T.contiguous().sort(dim=-1).values, positive.T.contiguous()
    n_beaten = torch.searchsorted(ranked, values) + torch.searchsorted(ranked, values, right=True)
    return (n_beaten.double().mean(dim=-1) / (2 * len(negative))).to(positive)
