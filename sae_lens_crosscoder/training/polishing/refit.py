"""Least-squares decoder and bias for given codes, by conjugate gradients: no (d_sae, d_sae) array is made."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import counts, gather_sum, run_starts
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.training.polishing.latent_hooks import LatentHooks

_RIDGE = 1e-3
_LEAST_TOKENS = 2
"""An atom that fewer tokens use keeps its direction."""
_TOLERANCE = 1e-6
_MAX_ITERATIONS = 200


@torch.no_grad()
def refit_decoder(
    x: Float[Tensor, "token d_in"],
    pairs: ActivePairs,
    values: Float[Tensor, " pairs"],
    W_dec: Float[Tensor, "d_sae d_in"],
    hooks: LatentHooks,
) -> tuple[Float[Tensor, "d_sae d_in"], Float[Tensor, " d_in"]]:
    """Decoder and bias with the least squared error of `x = f W_dec + b`, and a ridge of 1e-3 on the change of W_dec.

    Args:
        pairs, values: the codes f.
        W_dec: the decoder to start from, which atoms on fewer than two tokens keep.
        hooks: which weights of W_dec are 0 and stay so.
    """
    fitted = counts(pairs.latent, pairs.d_sae) >= _LEAST_TOKENS
    order, token, starts = pairs.by_latent
    token_starts = run_starts(pairs.token, pairs.n_tokens)

    def decode(rows: Tensor) -> Tensor:
        decoded = gather_sum(rows, pairs.latent, token_starts, values)
        return decoded - decoded.mean(dim=0)

    def transposed(error: Tensor) -> Tensor:
        rows = gather_sum(error - error.mean(dim=0), token, starts, values[order]) * fitted[:, None]
        return hooks.without_unwritten(rows)

    def normal(rows: Tensor) -> Tensor:
        return transposed(decode(rows)) + _RIDGE * rows

    centred = x - x.mean(dim=0)
    energy = values.new_zeros(pairs.d_sae).index_add_(0, pairs.latent, values.square()) + _RIDGE
    change = _conjugate_gradients(normal, transposed(centred - decode(W_dec)), energy)
    fitted_W = W_dec + change
    bias = (x - gather_sum(fitted_W, pairs.latent, token_starts, values)).mean(dim=0)
    return fitted_W, bias


def _conjugate_gradients(
    normal: Callable[[Tensor], Tensor], right: Float[Tensor, "d_sae d_in"], energy: Float[Tensor, " d_sae"]
) -> Float[Tensor, "d_sae d_in"]:
    """Solve for every column at once, preconditioned by the diagonal."""
    solution = torch.zeros_like(right)
    residual = right
    scaled = residual / energy[:, None]
    direction = scaled
    size = (residual * scaled).sum(dim=0)
    enough = _TOLERANCE**2 * size
    for _ in range(_MAX_ITERATIONS):
        if bool((size <= enough).all()):
            break
        along = normal(direction)
        curvature = (direction * along).sum(dim=0)
        step = torch.where(curvature > 0, size / curvature.clamp(min=1e-30), 0.0)
        solution = solution + step * direction
        residual = residual - step * along
        scaled = residual / energy[:, None]
        new_size = (residual * scaled).sum(dim=0)
        direction = scaled + torch.where(size > 0, new_size / size.clamp(min=1e-30), 0.0) * direction
        size = new_size
    return solution
