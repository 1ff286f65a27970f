"""Encoder rows that read the codes of a pursuit from the tokens, by least squares.

A pursuit subtracts what other atoms explain before it asks for the next one. A feed-forward encoder cannot: a row along
its own atom also reads every atom that is not orthogonal to it, such as the latent of a concept in both models when it
should fire on the concept in chat alone. The best linear reading of the codes is turned away from what goes with them.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import counts, gather_sum
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks
from sae_lens_crosscoder.training.polishing.nesting import Nesting

_RIDGE = 1e-3
"""Times the mean variance of a coordinate: fewer tokens than coordinates would leave the rows undetermined."""
_LEAST_TOKENS = 20
_LEAST_READ = 0.1
"""Least share of a lone atom that its row may read before it is scaled to read all of it."""


@torch.no_grad()
def reading_rows(
    x: Float[Tensor, "token d_in"],
    pairs: ActivePairs,
    values: Float[Tensor, " pairs"],
    W_dec: Float[Tensor, "d_sae d_in"],
    hooks: LatentHooks,
    nesting: Nesting,
    share: float = 1.0,
) -> tuple[Float[Tensor, "d_sae d_in"], Bool[Tensor, " d_sae"]]:
    """Rows e_j that predict the codes f_j from the tokens best, and the atoms whose own hook does not show them.

    Rows are scaled to read a lone atom exactly: `<e_j, d_j> = 1`.
    `e_j` is proportional to `Cov(x)^-1 Cov(x, f_j)`, with x at the hook that latent j reads, and 0 at the other hooks.
    An atom on fewer than 20 tokens, or hardly predictable, is read along itself. The hook does not show the latter, if
    it is not the only one.

    Args:
        pairs, values: the codes f, for the decoder before it was separated.
        W_dec: the decoder after it was.
        hooks: which hook each latent reads.
        nesting, share: how it was; see `separated`.
    """
    centred = x - x.mean(dim=0)
    order, token, starts = pairs.by_latent
    together = gather_sum(centred, token, starts, values[order])
    together = together.index_add(0, nesting.parent, -share * nesting.slope[:, None] * together[nesting.child])
    is_common = counts(pairs.latent, pairs.d_sae) >= _LEAST_TOKENS
    along = W_dec / W_dec.square().sum(dim=1, keepdim=True).clamp(min=1e-12)
    read, rows = hooks.read.to(x.device), torch.zeros_like(W_dec)
    is_hidden = torch.zeros_like(is_common)
    for hook in range(hooks.n_hooks):
        latents, at = (read == hook).nonzero(), hooks.coordinates(hook).to(x.device)
        predicting = _regression(centred[:, at], together[latents, at])
        of_atom = (predicting * W_dec[latents, at]).sum(dim=1, keepdim=True)
        is_read = is_common[latents] & (of_atom > _LEAST_READ)
        is_hidden[latents] = is_common[latents] & ~is_read & (hooks.n_hooks > 1)
        rows[latents, at] = torch.where(is_read, predicting / of_atom.clamp(min=_LEAST_READ), along[latents, at])
    return rows, is_hidden


def _regression(
    centred: Float[Tensor, "token read"], together: Float[Tensor, "latent read"]
) -> Float[Tensor, "latent read"]:
    """Rows proportional to `Cov(x)^-1 Cov(x, f)`, of centred tokens and their sums weighted by the codes."""
    covariance = centred.T.double() @ centred.double()
    covariance.diagonal().add_(_RIDGE * covariance.diagonal().mean().clamp(min=1e-12))
    return torch.linalg.solve(covariance, together.T.double()).T.to(together)
