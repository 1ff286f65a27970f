"""Decoy pairs: base activations against the same turned by a random map, so that the difference has no aim."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.stacking import StackedLayout

RANKS = (8, 8, 64)
"""Ranks of the decoys' maps, in turn."""


@dataclass(frozen=True)
class RandomMap:
    """`X -> [X, X + R X]`, stacked, where R is a random map of low rank."""

    matrix: Float[Tensor, "d_model d_model"]

    @classmethod
    def draw(cls, base: Float[Tensor, "row d_model"], size: float, rank: int, seed: int) -> "RandomMap":
        """Draw a map that moves the given rows by `size` times their norm, at the median."""
        d_model = base.shape[1]
        generator = torch.Generator().manual_seed(seed)
        left, right = (torch.randn(d_model, rank, generator=generator).to(base) for _ in range(2))
        matrix = left @ right.T / d_model
        moved = torch.linalg.vector_norm(base @ matrix.T, dim=1) / torch.linalg.vector_norm(base, dim=1)
        return cls(matrix * (size / moved.nanmedian()))  # 0 / 0 on rows of zeros

    def stack(self, base: Float[Tensor, "row d_model"]) -> Float[Tensor, "row d_in"]:
        """Base activations, and the same turned, as the two models of a pair."""
        return torch.cat([base, base + base @ self.matrix.T.to(base)], dim=1)

    def of_contrast(self, contrast: ContrastRows, layout: StackedLayout) -> ContrastRows:
        """The contrast as the decoy pair has it."""
        base = layout.split(contrast.activations)[0]
        return replace(contrast, activations=self.stack(base))


def size_of_difference(
    rows: Float[Tensor, "row d_in"], contrasts: Sequence[ContrastRows], layout: StackedLayout
) -> float:
    """Size that decoys are to have: the largest median of `|h^chat - h^base| / |h^base|`, of all rows and by contrast.

    Of a contrast only the negative prompts count, which fine-tuning was not aimed at, without the held-out ones.

    Raises:
        ValueError: for models that do not differ.
    """
    sets = [rows, *(contrast.part(held_out=False)[1] for contrast in contrasts)]
    size = max(_median_size(part, layout) for part in sets)
    if not (math.isfinite(size) and size > 0):
        raise ValueError(
            f"The median size of the difference between the models is {size}, so there is nothing to compare decoys "
            "with. Check that the tuned weights or the adapter were loaded, and the hook."
        )
    return size


def _median_size(rows: Tensor, layout: StackedLayout) -> float:
    base, chat = layout.split(rows.float())
    return float((torch.linalg.vector_norm(chat - base, dim=1) / torch.linalg.vector_norm(base, dim=1)).nanmedian())
