"""The stacked axis: the models' activations side by side, and the borders between them.

A crosscoder reads `h = [h^base, h^chat]`, concatenated on the last axis; its matrices are stacked the same way. Only
this module knows the borders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class StackedLayout:
    """The widths of the stacked models, base first and chat last.

    >>> layout = StackedLayout((2, 3))
    >>> layout.d_in, layout.n_models, layout.names
    (5, 2, ('base', 'chat'))
    >>> [tuple(part.shape) for part in layout.split(torch.zeros(7, 5))]
    [(7, 2), (7, 3)]
    """

    d_models: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.d_models or any(width < 1 for width in self.d_models):
            raise ValueError(
                f"d_models={self.d_models} must contain at least one model, each at least 1 wide. Pass the width of "
                "every model's residual stream, such as (2304, 2304)."
            )

    @property
    def d_in(self) -> int:
        """Width of the stacked axis, the sum of `d_models`."""
        return sum(self.d_models)

    @property
    def n_models(self) -> int:
        """Number of stacked models."""
        return len(self.d_models)

    @property
    def same_width(self) -> bool:
        """True if all models have one width, so that their directions can be compared."""
        return len(set(self.d_models)) == 1

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the models in tables and metrics."""
        return ("base", "chat") if self.n_models == 2 else tuple(f"model_{m}" for m in range(self.n_models))

    def split(self, stacked: Float[Tensor, "*rows d_in"]) -> tuple[Float[Tensor, "*rows _"], ...]:
        """Each model's slice of the last axis, as views."""
        if stacked.shape[-1] != self.d_in:
            raise ValueError(
                f"The last axis is {stacked.shape[-1]} wide, expected {self.d_in}, the sum of the models' widths "
                f"{self.d_models}. Check d_models and the hook of the activations."
            )
        return tuple(stacked.split(list(self.d_models), dim=-1))

    def stack(self, parts: Sequence[Float[Tensor, "*rows _"]]) -> Float[Tensor, "*rows d_in"]:
        """The inverse of `split`; moves parts to the first one's device."""
        widths = tuple(part.shape[-1] for part in parts)
        if widths != self.d_models:
            raise ValueError(
                f"The parts are {widths} wide, expected {self.d_models}. Pass one part per model, in the same order."
            )
        return torch.cat([part.to(parts[0].device) for part in parts], dim=-1)

    def norms(self, stacked: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows model"]:
        """Euclidean norm of each model's slice, with gradient (0 at a zero slice).

        >>> StackedLayout((1, 2)).norms(torch.tensor([[-2.0, 3.0, 4.0]]))
        tensor([[2., 5.]])
        """
        return torch.stack([torch.linalg.vector_norm(part, dim=-1) for part in self.split(stacked)], dim=-1)

    def expand(self, per_model: Float[Tensor, " model"]) -> Float[Tensor, " d_in"]:
        """Repeat one number per model over that model's slice.

        >>> StackedLayout((1, 2)).expand(torch.tensor([5.0, 7.0]))
        tensor([5., 7., 7.])
        """
        repeats = torch.tensor(self.d_models, device=per_model.device)
        return per_model.repeat_interleave(repeats, output_size=self.d_in)
