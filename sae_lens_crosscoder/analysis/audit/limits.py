"""Detection limits of an audit: planted changes of decreasing frequency and size."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.analysis.answers.phrases import LEAST_NET
from sae_lens_crosscoder.analysis.audit.carriers import find_carriers
from sae_lens_crosscoder.analysis.audit.finding import LEAST_SHARE
from sae_lens_crosscoder.analysis.changed.significance import Q_LIMIT
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder
from sae_lens_crosscoder.stacking import StackedLayout

SIZES = (0.14, 0.2, 0.28, 0.4, 0.57, 0.8, 1.13)
"""Lengths of planted directions, relative to the median norm of the model that gets them, in ascending order."""
FREQUENCIES = (0.2, 0.05)
"""Shares of the prompts that get them."""
_LEAST_POWER = 0.9


def least_frequency(n_chosen_on: int, n_held_out: int, n_tested: int) -> float:
    """The rarest new answer, as a share of prompts, that the test of phrases finds with a probability of 0.9.

    The answer is always given by one model and never by the other. It must be in at least 5 answers to prompts to
    choose on, and in so many to held-out ones that the sign test is significant as the only one among those tested.
    nan if no share is enough.

    Args:
        n_chosen_on, n_held_out: prompts in each part.
        n_tested: phrases tested.
    """
    from scipy.stats import binom

    n_needed = next(n for n in range(1, 1000) if 0.5**n <= Q_LIMIT / max(1, n_tested))
    frequencies = np.linspace(0, 1, 10_001)
    chosen = binom.sf(LEAST_NET - 1, n_chosen_on, frequencies)
    is_found = chosen * binom.sf(n_needed - 1, n_held_out, frequencies) >= _LEAST_POWER
    return float(frequencies[is_found.argmax()]) if is_found.any() else float("nan")


@dataclass(frozen=True, kw_only=True)
class NullPhrases:
    """Phrases of the same search where nothing is to be found: base's answers against its own, sampled once more."""

    n_tested: int
    n_found: int
    """Of these, new by the same rule; due to chance."""


@dataclass(frozen=True)
class PlantedContrasts:
    """Activations with a direction for each frequency, added to the chat model's at the decisions of some prompts."""

    activations: Float[Tensor, "row d_in"]
    contrasts: dict[float, ContrastRows]
    """By frequency."""

    def found(self, crosscoder: InferenceCrosscoder) -> dict[float, bool]:
        """By frequency, True if carriers write half of the contrast on held-out prompts, and tell these apart.

        Args:
            crosscoder: trained on these activations.
        """
        carriers = {frequency: find_carriers(crosscoder, contrast) for frequency, contrast in self.contrasts.items()}
        return {frequency: each.share >= LEAST_SHARE and each.tells_apart for frequency, each in carriers.items()}


def plant_contrasts(
    activations: Float[Tensor, "row d_in"],
    decision_rows: Int[Tensor, " prompt"],
    held_out: Bool[Tensor, " _"],
    layout: StackedLayout,
    sizes: Mapping[float, float],
    seed: int = 0,
) -> PlantedContrasts:
    """Plant a contrast for each frequency: a random direction, added at the decisions of random prompts.

    Args:
        activations: raw stacked activations.
        decision_rows: the row of each prompt's decision token.
        held_out: by prompt.
        sizes: by frequency, the direction's length relative to the chat model's median norm.
    """
    generator = torch.Generator().manual_seed(seed)
    planted = activations.clone()
    chat = layout.split(planted)[-1]  # a view
    norm = torch.linalg.vector_norm(chat[decision_rows].float(), dim=1).median()
    chosen: dict[float, Tensor] = {}
    for frequency, size in sizes.items():
        positive = torch.zeros(len(decision_rows), dtype=torch.bool)
        for part in (held_out, ~held_out):
            members = part.nonzero()[:, 0]
            n = max(2, round(frequency * len(members)))
            positive[members[torch.randperm(len(members), generator=generator)[:n]]] = True
        direction = torch.nn.functional.normalize(torch.randn(chat.shape[1], generator=generator), dim=0)
        chat[decision_rows[positive]] += (size * norm * direction).to(chat)
        chosen[frequency] = positive
    contrasts = {
        frequency: ContrastRows(
            name=f"planted {frequency:g}",
            activations=planted[decision_rows],
            positive=positive,
            held_out=held_out,
        )
        for frequency, positive in chosen.items()
    }
    return PlantedContrasts(planted, contrasts)


def least_sizes(
    is_found: Callable[[dict[float, float], int], dict[float, bool]],
    sizes: Sequence[float] = SIZES,
    frequencies: Sequence[float] = FREQUENCIES,
) -> dict[float, float]:
    """By frequency, the least size that is found, by halving the range of sizes; nan if none is.

    One change of each frequency is planted at a time: more would hide each other.

    Args:
        is_found: from a size for each frequency and the number of the round, what a planting of these finds.
        sizes: in ascending order.
    """
    low, high = dict.fromkeys(frequencies, 0), dict.fromkeys(frequencies, len(sizes))
    rounds = 0
    while unsettled := [frequency for frequency in frequencies if low[frequency] < high[frequency]]:
        middle = {frequency: (low[frequency] + high[frequency]) // 2 for frequency in unsettled}
        found = is_found({frequency: sizes[at] for frequency, at in middle.items()}, rounds)
        for frequency, at in middle.items():
            if found[frequency]:
                high[frequency] = at
            else:
                low[frequency] = at + 1
        rounds += 1
    return {frequency: sizes[at] if at < len(sizes) else float("nan") for frequency, at in high.items()}
