"""Partition of a crosscoder's latents: some are confined to one model by construction (after arXiv 2602.11729)."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.confinement import Confinement
from sae_lens_crosscoder.stacking import StackedLayout

BY_CONSTRUCTION = (
    "Delta_norm of an exclusive latent is 0 or 1 by construction: it is no evidence of a difference. "
    "Only the verdict is."
)
"""Sentence that stands wherever Delta_norm of a partitioned crosscoder is shown."""


@dataclass(frozen=True)
class Partition(Confinement):
    """The first `n_base` latents read and write the base model only, the next `n_chat` the chat model only.

    All other latents are shared: they read and write both models.

    >>> Partition(2, 3).of_rows(first=4, n=4)
    Partition(n_base=0, n_chat=1)
    """

    n_base: int
    n_chat: int

    @property
    def n_exclusive(self) -> int:
        """Number of latents that are confined to one model."""
        return self.n_base + self.n_chat

    def of_rows(self, first: int, n: int) -> "Partition":
        """Return the partition of `n` consecutive latents, such as one shard's."""
        n_base, n_exclusive = (min(max(border - first, 0), n) for border in (self.n_base, self.n_exclusive))
        return Partition(n_base, n_exclusive - n_base)

    def is_exclusive(self, d_sae: int) -> Bool[Tensor, " d_sae"]:
        """Mark the exclusive latents."""
        return torch.arange(d_sae) < self.n_exclusive

    @override
    def foreign(
        self, rows: Float[Tensor, "d_sae d_in"], layout: StackedLayout
    ) -> tuple[Float[Tensor, "n_base d_chat"], Float[Tensor, "n_chat d_base"]]:
        """Views of the weights that must be 0: each exclusive latent's half in the other model."""
        base, chat = layout.split(rows)
        return chat[: self.n_base], base[self.n_base : self.n_exclusive]

    @override
    def violation(self, name: str) -> str:
        return (
            f"{name} is not 0 in the other model's half of exclusive latents, with n_base_exclusive={self.n_base} "
            f"and n_chat_exclusive={self.n_chat}. Use weights that were trained with this partition."
        )


@dataclass(kw_only=True)
class PartitionFields:
    """Config fields of a partition; with both 0 there is none."""

    n_base_exclusive: int = 0
    """Latents that read and write the base model only; they come first. Their Delta_norm is 0 by construction."""
    n_chat_exclusive: int = 0
    """Latents that read and write the chat model only, behind those. Their Delta_norm is 1 by construction."""

    @property
    def partition(self) -> Partition | None:
        """The partition of the latents, None if all are shared."""
        if self.n_base_exclusive == self.n_chat_exclusive == 0:
            return None
        return Partition(self.n_base_exclusive, self.n_chat_exclusive)

    def validate_partition(self, d_sae: int, layout: StackedLayout) -> None:
        """Raise a ValueError for numbers of exclusive latents that this crosscoder cannot have."""
        for name in ("n_base_exclusive", "n_chat_exclusive"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative; 0 means no such latents.")
        if self.partition is None:
            return
        if not layout.is_pair:
            raise ValueError(
                f"n_base_exclusive={self.n_base_exclusive} and n_chat_exclusive={self.n_chat_exclusive} need two "
                f"models at one hook, but the sources are {layout.names}. Set both to 0."
            )
        if self.partition.n_exclusive >= d_sae:
            raise ValueError(
                f"n_base_exclusive={self.n_base_exclusive} plus n_chat_exclusive={self.n_chat_exclusive} must leave "
                f"shared latents among d_sae={d_sae}. A sixteenth and an eighth of d_sae are good values."
            )


class PartitionedBatchTopK(nn.Module):
    """SAELens's `BatchTopK` on the exclusive latents, which come first, and on the shared ones.

    Args:
        budgets: returns how many scores to keep in each group, given k and the number of tokens.
    """

    def __init__(
        self, k: float | int, budgets: Callable[[float | int, int], tuple[int, int]], n_exclusive: int
    ) -> None:
        super().__init__()
        self.k, self.budgets, self.n_exclusive = k, budgets, n_exclusive

    @override
    def forward(self, scores: Float[Tensor, "*rows d_sae"]) -> Float[Tensor, "*rows d_sae"]:
        groups = scores[..., : self.n_exclusive], scores[..., self.n_exclusive :]
        n_keep = self.budgets(self.k, scores.shape[:-1].numel())
        return torch.cat([_largest(*group) for group in zip(groups, n_keep, strict=True)], dim=-1)


def _largest(scores: Float[Tensor, "*rows latents"], n: int) -> Float[Tensor, "*rows latents"]:
    flat = scores.relu().flatten()
    found = flat.topk(min(n, len(flat)))
    return torch.zeros_like(flat).scatter(-1, found.indices, found.values).reshape(scores.shape)
