"""Products of a sparse training step over its active pairs, with gradients in closed form."""

from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.sparse_step.kernels import gather_dot, gather_sum, run_starts
from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.stacking import StackedLayout


class PreActivations(torch.autograd.Function):
    """Pre-activations of given pairs, computed before, with their gradient to the encoder and none to the input."""

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, b_enc: Tensor, x: Tensor, values: Tensor, pairs: ActivePairs) -> Tensor:
        ctx.save_for_backward(x)
        ctx.pairs = pairs
        return values.clone()

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        (x,) = ctx.saved_tensors
        pairs: ActivePairs = ctx.pairs
        (gradient,) = grad_outputs
        order, token, starts = pairs.by_latent
        rows_gradient = gather_sum(x, token, starts, gradient.index_select(0, order))
        b_gradient = gradient.new_zeros(pairs.d_sae).index_add_(0, pairs.latent, gradient)
        return rows_gradient, b_gradient, None, None, None


class Reconstruction(torch.autograd.Function):
    """`sum_j f_ij d_j` over active pairs."""

    @staticmethod
    @override
    def forward(ctx: Any, W_dec: Tensor, values: Tensor, pairs: ActivePairs) -> Tensor:
        ctx.save_for_backward(W_dec, values)
        ctx.pairs = pairs
        return gather_sum(W_dec, pairs.latent, run_starts(pairs.token, pairs.n_tokens), values)

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        W_dec, values = ctx.saved_tensors
        pairs: ActivePairs = ctx.pairs
        (gradient,) = grad_outputs
        gradient = gradient.contiguous()
        order, token, starts = pairs.by_latent
        W_gradient = gather_sum(gradient, token, starts, values.index_select(0, order))
        return W_gradient, gather_dot(gradient, W_dec, pairs.token, pairs.latent), None


class ReconstructionLoss(torch.autograd.Function):
    """The reconstruction, without gradient, and its loss: `PreActivations`, `Reconstruction` and the loss in one."""

    @staticmethod
    @override
    def forward(
        ctx: Any,
        W_dec: Tensor,
        b_dec: Tensor,
        rows: Tensor,
        b_enc: Tensor,
        x: Tensor,
        pre: Tensor,
        target: Tensor,
        pairs: ActivePairs,
        layout: StackedLayout,
        kind: str,
    ) -> tuple[Tensor, Tensor]:
        decoded = gather_sum(W_dec, pairs.latent, run_starts(pairs.token, pairs.n_tokens), pre).add_(b_dec)
        loss, gradient = _loss_and_gradient(target - decoded, layout, kind)
        ctx.save_for_backward(W_dec, x, pre, gradient)
        ctx.pairs = pairs
        ctx.mark_non_differentiable(decoded)
        return decoded, loss

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        W_dec, x, pre, gradient = ctx.saved_tensors
        pairs: ActivePairs = ctx.pairs
        order, token, starts = pairs.by_latent
        gradient = gradient * grad_outputs[1]
        of_pre = gather_dot(gradient, W_dec, pairs.token, pairs.latent)
        of_W_dec = gather_sum(gradient, token, starts, pre.index_select(0, order))
        of_rows = gather_sum(x, token, starts, of_pre.index_select(0, order))
        of_b_enc = of_pre.new_zeros(pairs.d_sae).index_add_(0, pairs.latent, of_pre)
        return of_W_dec, gradient.sum(dim=0), of_rows, of_b_enc, None, None, None, None, None, None


def _loss_and_gradient(error: Tensor, layout: StackedLayout, kind: str) -> tuple[Tensor, Tensor]:
    """`reconstruction_loss` of an error, and its gradient to the reconstruction, which takes the error's memory."""
    if kind == "mse":
        loss = error.square().sum(dim=-1).mean()
        return loss, error.mul_(-2 / len(error))
    norms = layout.norms(error)
    # At a norm of 0 the gradient is 0, as torch's.
    factors = norms.reciprocal().masked_fill_(norms == 0, 0.0).mul_(-1 / norms.numel())
    return norms.mean(), layout.scale_(error, factors)
