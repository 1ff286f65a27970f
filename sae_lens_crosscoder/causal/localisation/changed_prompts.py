"""Prompts that changed most, found from the KL alone, without labels."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments

CLEAR_SPLIT = 0.8
"""Share of the variance of sqrt(KL) between two groups above which they are two groups: 0.75 for a uniform spread."""


@dataclass(frozen=True)
class ChangedPrompts:
    """The prompts that changed most against the others."""

    changed: Bool[Tensor, " prompt"]
    split: float
    """Share of the variance of sqrt(KL) that lies between the two groups, at the best cut: 1 is a perfect split."""
    is_clear: bool
    """True if the prompts fall into two groups by themselves. Otherwise the upper quarter counts as changed."""

    @property
    def description(self) -> str:
        """One sentence on the split."""
        n, total = int(self.changed.sum()), len(self.changed)
        if self.is_clear:
            return f"{n} of {total} prompts changed: their KL stands apart from that of the others."
        return f"No clear gap in the KL of {total} prompts: the upper quarter ({n}) counts as changed."


@validate_arguments
def changed_prompts(kl: Float[Tensor, " prompt"]) -> ChangedPrompts:
    """Split prompts by KL at the cut with the largest variance of sqrt(KL) between the groups (Otsu 1979).

    The square root makes KL a distance, so that a few huge values do not decide alone. Fewer than four prompts are all
    counted as changed.

    Args:
        kl: KL between the models after each prompt.

    >>> changed_prompts(torch.tensor([3.0, 0.02, 4.0, 0.01, 0.03, 3.5])).changed.tolist()
    [True, False, True, False, False, True]
    """
    if len(kl) < 4:
        return ChangedPrompts(torch.ones_like(kl, dtype=torch.bool), 0.0, False)
    distance, order = kl.double().clamp_min(0).sqrt().sort(descending=True)
    n = torch.arange(1, len(kl), dtype=torch.float64)
    upper, total = distance.cumsum(dim=0)[:-1], distance.sum()
    gap = upper / n - (total - upper) / (len(kl) - n)
    between = n * (len(kl) - n) / len(kl) ** 2 * gap.square()
    between[0] = 0.0  # one prompt is no group
    variance = float(distance.var(correction=0))
    split = float(between.max()) / variance if variance > 0 else 0.0
    is_clear = split >= CLEAR_SPLIT
    n_changed = int(between.argmax()) + 1 if is_clear else -(-len(kl) // 4)
    changed = torch.zeros_like(kl, dtype=torch.bool)
    changed[order[:n_changed]] = True
    return ChangedPrompts(changed, split, is_clear)
