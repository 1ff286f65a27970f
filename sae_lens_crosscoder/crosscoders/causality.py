"""Weak causality of crosscoders over layers: a latent reads one hook, and writes that one and later ones.

After the crosscoders of Lindsey et al. (2024, "Sparse Crosscoders", weakly causal) and Gemma Scope 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from sae_lens.util import extract_layer_from_tlens_hook_name
from torch import Tensor
from typing_extensions import override

from sae_lens_crosscoder.crosscoders.confinement import Confinement
from sae_lens_crosscoder.stacking import StackedLayout

Causality = Literal["acausal", "weak"]


@dataclass(frozen=True)
class WeakCausality:
    """Groups of consecutive latents, one per hook in the order of the hooks; a group may be empty.

    Args:
        ends: one past the last latent of each group, among the latents at hand.

    >>> WeakCausality.over(n_hooks=3, d_sae=8)
    WeakCausality(ends=(3, 5, 8))
    >>> WeakCausality((3, 5, 8)).of_rows(first=4, n=2).hooks_read().tolist()
    [1, 2]
    """

    ends: tuple[int, ...]

    @classmethod
    def over(cls, n_hooks: int, d_sae: int) -> "WeakCausality":
        """Divide the latents between the hooks, as evenly as they can be."""
        return cls(tuple(round(d_sae * hook / n_hooks) for hook in range(1, n_hooks + 1)))

    @property
    def starts(self) -> tuple[int, ...]:
        """The first latent of each group."""
        return (0, *self.ends[:-1])

    def of_rows(self, first: int, n: int) -> "WeakCausality":
        """Return the groups among `n` consecutive latents, such as one shard's."""
        return WeakCausality(tuple(min(max(end - first, 0), n) for end in self.ends))

    def hooks_read(self) -> Int[Tensor, " d_sae"]:
        """Number of the hook that each latent reads."""
        sizes = torch.tensor([end - start for start, end in zip(self.starts, self.ends, strict=True)])
        return torch.arange(len(self.ends)).repeat_interleave(sizes)

    @property
    def reading(self) -> Confinement:
        """The encoder weights that must be 0: all but those at a latent's own hook."""
        return _Reading(self)

    @property
    def writing(self) -> Confinement:
        """The decoder weights that must be 0: those at hooks before the one that a latent reads."""
        return _Writing(self)


@dataclass(frozen=True)
class _Reading(Confinement):
    causality: WeakCausality

    @override
    def foreign(self, rows: Float[Tensor, "d_sae d_in"], layout: StackedLayout) -> list[Float[Tensor, "_ _"]]:
        blocks: list[Tensor] = []
        for place, part in enumerate(layout.split(rows)):
            hook = place % len(layout.hook_names)
            blocks += [part[: self.causality.starts[hook]], part[self.causality.ends[hook] :]]
        return blocks

    @override
    def violation(self, name: str) -> str:
        return (
            f"{name} is not 0 at hooks that a latent does not read, with causality='weak'. Use weights that were "
            "trained with it and with the same hooks."
        )


@dataclass(frozen=True)
class _Writing(Confinement):
    causality: WeakCausality

    @override
    def foreign(self, rows: Float[Tensor, "d_sae d_in"], layout: StackedLayout) -> list[Float[Tensor, "_ _"]]:
        parts = enumerate(layout.split(rows))
        return [part[self.causality.ends[place % len(layout.hook_names)] :] for place, part in parts]

    @override
    def violation(self, name: str) -> str:
        return (
            f"{name} is not 0 at hooks before the one that a latent reads, with causality='weak'. Use weights that "
            "were trained with it and with the same hooks."
        )


def validate_order(hook_names: Sequence[str]) -> None:
    """Raise a ValueError for hooks whose names say that they are not in the order in which a model reaches them."""
    layers = [extract_layer_from_tlens_hook_name(name) for name in hook_names]
    known = [layer for layer in layers if layer is not None]
    if known != sorted(known):
        raise ValueError(
            f"hook_names={tuple(hook_names)} are in layers {known}, but causality='weak' lets a latent write later "
            "hooks only. Name them in the order of the layers."
        )
