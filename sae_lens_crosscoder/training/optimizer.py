"""Adam without passes over memory that it does not need."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam
from torch.optim.adam import adam
from typing_extensions import override


class LatentMajorAdam(Adam):
    """`Adam(fused=True)` that sees transposed weights as the contiguous memory they are.

    The encoder is stored latent by latent, as a transposed view; torch's fused CPU kernel copies such weights, their
    gradient and both moments to contiguous memory and back at every step, which takes longer than the step.
    """

    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Adam's step without its checks for compilers, which take longer than a small step's arithmetic."""
        assert closure is None  # SAELens's trainers have none
        for group in self.param_groups:
            lists: tuple[list[Tensor], ...] = ([], [], [], [], [], [])
            self._init_group(group, *lists)
            beta1, beta2 = group["betas"]
            settings = {name: group[name] for name in ("lr", "weight_decay", "eps", "maximize", "amsgrad")}
            scale = getattr(self, "grad_scale", None)
            adam(*lists, beta1=beta1, beta2=beta2, fused=True, grad_scale=scale, **settings)

    @override
    def _init_group(
        self,
        group: dict[str, Any],
        params_with_grad: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        state_steps: list[Tensor],
    ) -> bool:
        has_complex = super()._init_group(
            group, params_with_grad, grads, exp_avgs, exp_avg_sqs, max_exp_avg_sqs, state_steps
        )
        lists = (params_with_grad, grads, exp_avgs, exp_avg_sqs)
        for i, tensors in enumerate(zip(*lists, strict=True)):
            if all(not tensor.is_contiguous() and tensor.mT.is_contiguous() for tensor in tensors):
                for of_kind, tensor in zip(lists, tensors, strict=True):
                    of_kind[i] = tensor.mT
        return has_complex
