"""Weak causality of crosscoders over layers: a latent reads one hook, and writes that one and later ones.

After the crosscoders of Lindsey et al. (2024, "Sparse Crosscoders", weakly causal) and Gemma Scope 2.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
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
    """Groups of consecutive latents that read the hooks in turn, each group one of them; a group may be empty.

    Args:
        ends: one past the last latent of each group, among the latents at hand.
        n_hooks: group i reads hook `i % n_hooks`.

    >>> WeakCausality.over(3, 8)
    WeakCausality(ends=(3, 5, 8), n_hooks=3)
    >>> WeakCausality.over(2, 2, 4).hooks_read().tolist()  # two levels, as of a Matryoshka crosscoder
    [0, 1, 0, 0, 1, 1]
    >>> WeakCausality.over(3, 8).of_rows(first=4, n=2).hooks_read().tolist()
    [1, 2]
    """

    ends: tuple[int, ...]
    n_hooks: int

    @classmethod
    def over(cls, n_hooks: int, *level_sizes: int) -> "WeakCausality":
        """Divide the latents of each level between the hooks, as evenly as they can be."""
        firsts = [0, *accumulate(level_sizes)]
        ends = [
            first + round(size * hook / n_hooks)
            for first, size in zip(firsts, level_sizes, strict=False)
            for hook in range(1, n_hooks + 1)
        ]
        return cls(tuple(ends), n_hooks)

    def of_rows(self, first: int, n: int) -> "WeakCausality":
        """Return the groups among `n` consecutive latents, such as one shard's."""
        return WeakCausality(tuple(min(max(end - first, 0), n) for end in self.ends), self.n_hooks)

    def hooks_read(self) -> Int[Tensor, " d_sae"]:
        """Number of the hook that each latent reads."""
        sizes = torch.tensor([end - start for start, end in pairwise((0, *self.ends))])
        return (torch.arange(len(self.ends)) % self.n_hooks).repeat_interleave(sizes)

    def runs(self, hooks: Collection[int]) -> list[slice]:
        """Runs of consecutive latents that read one of `hooks`."""
        runs: list[slice] = []
        for group, (start, end) in enumerate(pairwise((0, *self.ends))):
            if start == end or group % self.n_hooks not in hooks:
                continue
            joins = bool(runs) and runs[-1].stop == start
            runs[-1:] = [slice(runs[-1].start, end)] if joins else [*runs[-1:], slice(start, end)]
        return runs

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
        n_hooks = self.causality.n_hooks
        blocks: list[Tensor] = []
        for place, part in enumerate(layout.split(rows)):
            read_elsewhere = set(range(n_hooks)) - {place % n_hooks}
            blocks += [part[run] for run in self.causality.runs(read_elsewhere)]
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
        n_hooks = self.causality.n_hooks
        blocks: list[Tensor] = []
        for place, part in enumerate(layout.split(rows)):
            read_later = range(place % n_hooks + 1, n_hooks)
            blocks += [part[run] for run in self.causality.runs(read_later)]
        return blocks

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
