"""Initial weights of a crosscoder."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout

Initialisation = Literal["paired", "independent"]


def initial_decoder(
    layout: StackedLayout,
    d_sae: int,
    norm: float,
    initialisation: str,
    dtype: torch.dtype,
    device: torch.device,
) -> Float[Tensor, "d_sae d_in"]:
    """Random decoder rows, each model's half of length `norm`, from torch's global generator.

    `paired` gives every model the same direction, so that a latent starts shared and becomes model-specific only if
    training makes it so. Models of different width have no common basis: they always start `independent`.
    """
    paired = initialisation == "paired" and layout.same_width
    n_draws = 1 if paired else layout.n_sources
    widths = layout.d_models[:n_draws]
    draws = [torch.randn(d_sae, width, dtype=dtype, device=device) for width in widths]
    units = [norm * torch.nn.functional.normalize(draw, dim=-1) for draw in draws]
    return layout.stack(units * (layout.n_sources // n_draws))


def geometric_median(
    points: Float[Tensor, "batch d_model"], n_iterations: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d_model"]:
    """The point with the least summed distance to `points`, by Weiszfeld's iteration.

    Unlike the mean it does not follow a few enormous activations, such as those at the BOS token.

    >>> geometric_median(torch.tensor([[0.0], [1.0], [100.0]])).round().item()
    1.0
    """
    median = points.mean(dim=0)
    for _ in range(n_iterations):
        # The floor keeps a point that coincides with the estimate from having an infinite weight.
        distances = torch.linalg.vector_norm(points - median, dim=-1).clamp(min=1e-8)
        weights = 1 / distances
        moved = (points * weights[:, None]).sum(dim=0) / weights.sum()
        step, median = torch.linalg.vector_norm(moved - median), moved
        if step <= tolerance * torch.linalg.vector_norm(median):
            break
    return median
