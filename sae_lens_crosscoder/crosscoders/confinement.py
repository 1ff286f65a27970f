"""Weights that stay exactly 0: the base of rules that confine latents to some sources."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.stacking import StackedLayout


class Confinement(ABC):
    """Rule that says which blocks of encoder or decoder rows must be 0."""

    @abstractmethod
    def foreign(self, rows: Float[Tensor, "d_sae d_in"], layout: StackedLayout) -> Sequence[Float[Tensor, "_ _"]]:
        """Views of the weights that must be 0."""

    @abstractmethod
    def violation(self, name: str) -> str:
        """Message of the error about weights `name` that are not 0 where they must be."""

    def clear(self, rows: Float[Tensor, "d_sae d_in"], layout: StackedLayout) -> None:
        """Set the foreign blocks to 0, in place."""
        for block in self.foreign(rows, layout):
            block.zero_()

    def validate(self, rows: Float[Tensor, "d_sae d_in"], layout: StackedLayout, name: str) -> None:
        """Raise a ValueError unless the foreign blocks are exactly 0."""
        if any(bool(block.any()) for block in self.foreign(rows, layout)):
            raise ValueError(self.violation(name))


class _ConfinedGradient(torch.autograd.Function):
    """The weights themselves, with a gradient of exactly 0 in foreign blocks."""

    @staticmethod
    @override
    def forward(ctx: Any, rows: Tensor, confinement: Confinement, layout: StackedLayout) -> Tensor:
        ctx.confinement, ctx.layout = confinement, layout
        return rows.view_as(rows)

    @staticmethod
    @override
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = grad_outputs
        # In place, because every product of a training step makes a gradient that nobody else holds.
        ctx.confinement.clear(gradient, ctx.layout)
        return gradient, None, None


def confine_gradient(
    rows: Float[Tensor, "d_sae d_in"], confinement: Confinement, layout: StackedLayout
) -> Float[Tensor, "d_sae d_in"]:
    """Return a view of the weights, whose gradient is exactly 0 in foreign blocks."""
    return _ConfinedGradient.apply(rows, confinement, layout)  # pyright: ignore[reportReturnType]
