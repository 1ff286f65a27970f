"""The hooks that latents read and write, so that a polish keeps every weight at 0 that weak causality keeps there."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lens_crosscoder.crosscoders.batchtopk import BatchTopKTrainingCrosscoder
from sae_lens_crosscoder.crosscoders.causality import WeakCausality
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.training.polishing.nesting import Nesting

_STARTS_AT = 0.25
"""A direction starts at the first hook that has this share of the mean hook's energy: noise before it has less."""


@dataclass(frozen=True)
class LatentHooks:
    """The hook that each latent reads, and where it lies in the stack; acausal latents share one hook.

    >>> layout = StackedLayout((1, 1, 1), ("early", "middle", "late"))
    >>> hooks = LatentHooks(layout, WeakCausality.over(3, 3))
    >>> hooks.without_unwritten(torch.ones(3, 3))
    tensor([[1., 1., 1.],
            [0., 1., 1.],
            [0., 0., 1.]])
    """

    layout: StackedLayout
    causality: WeakCausality

    @classmethod
    def of(cls, crosscoder: BatchTopKTrainingCrosscoder) -> "LatentHooks":
        """Return the hooks of a crosscoder's latents."""
        causality = crosscoder.cfg.weak_causality()
        return cls(crosscoder.layout, causality or WeakCausality.over(1, crosscoder.cfg.d_sae))

    @property
    def n_hooks(self) -> int:
        """Hooks that different latents read."""
        return self.causality.n_hooks

    @property
    def read(self) -> Int[Tensor, " d_sae"]:
        """Number of the hook that each latent reads."""
        return self.causality.hooks_read()

    def coordinates(self, hook: int) -> Int[Tensor, " coordinates"]:
        """The places in the stack that the latents of a hook read, of all models."""
        is_read = torch.arange(self.layout.n_sources) % self.n_hooks == hook
        return self.layout.expand(is_read.float()).nonzero().squeeze(1)

    def without_unwritten(self, rows: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "d_sae d_in"]:
        """Set decoder rows to 0, in place, at the hooks before the one that their latent reads."""
        self.causality.writing.clear(rows, self.layout)
        return rows

    def allowed(self, nesting: Nesting) -> Nesting:
        """Keep the nested atoms whose child may write wherever its parent does.

        Elsewhere the zeros of the child already say what is not its own.
        """
        read = self.read.to(nesting.parent.device)
        return Nesting(*(entries[read[nesting.child] <= read[nesting.parent]] for entries in nesting))

    def starts(self, directions: Float[Tensor, "found d_in"]) -> Int[Tensor, " found"]:
        """Number of the hook at which each direction starts."""
        energy = self.layout.norms(directions).square()
        of_hook = energy.unflatten(1, (-1, self.n_hooks)).sum(dim=1)
        return (of_hook >= _STARTS_AT * of_hook.mean(dim=1, keepdim=True)).int().argmax(dim=1)
