"""Stacked activations of a contrast: one row per prompt, at its decision position."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.data.contrasts import Contrast, validate_groups
from sae_lens_crosscoder.models.pair import HookedModelPair


@dataclass(frozen=True, kw_only=True)
class ContrastRows:
    """A contrast as an analysis reads it, harvested by `contrast_rows` or given.

    Raises:
        ValueError: for fields of different lengths, or fewer than two rows of a group in either part.
    """

    name: str
    activations: Float[Tensor, "prompt d_in"]
    """Raw stacked activations at the decision positions, base first."""
    positive: Bool[Tensor, " _"]
    """True for prompts with the concept."""
    held_out: Bool[Tensor, " _"]
    """True for prompts that nothing is chosen on."""
    model: str = "chat"
    """The model that must have the concept."""
    kind_of_change: str | None = None
    """What fine-tuning did to the concept, if it is known: `chat_only`, `shared` or `base_only`."""

    def __post_init__(self) -> None:
        sizes = (len(self.activations), len(self.positive), len(self.held_out))
        if len(set(sizes)) > 1:
            raise ValueError(
                f"Contrast {self.name!r} has {sizes[0]} rows of activations, but {sizes[1]} entries of positive and "
                f"{sizes[2]} of held_out. Pass one entry per row."
            )
        validate_groups(self.name, self.positive, self.held_out)

    @validate_arguments
    def part(self, held_out: bool) -> tuple[Float[Tensor, "positive d_in"], Float[Tensor, "negative d_in"]]:
        """Rows of the positive and the negative prompts, held out or not."""
        chosen = self.held_out == held_out
        return self.activations[chosen & self.positive], self.activations[chosen & ~self.positive]


@validate_arguments
def contrast_rows(pair: HookedModelPair, contrast: Contrast, hook_name: str, batch_size: int = 32) -> ContrastRows:
    """Run both models on a contrast's prompts and keep the activations at the decision positions.

    Args:
        contrast: its prompts, padded on the right.

    Raises:
        ValueError: for tokens that `harvest` refuses.
    """
    decision = torch.zeros_like(contrast.tokens, dtype=torch.bool)
    decision[torch.arange(len(decision)), contrast.positions] = True
    batches = harvest(pair, contrast.tokens, hook_name, batch_size, decision)
    return ContrastRows(
        name=contrast.name,
        activations=torch.cat([batch.cpu() for batch in batches]),
        positive=contrast.positive,
        held_out=contrast.held_out,
        model=contrast.model,
        kind_of_change=contrast.kind_of_change,
    )
