"""Detection limits of an audit: planted changes of decreasing frequency and size."""

from collections.abc import Sequence
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

SIZES = (1.13, 0.8, 0.57, 0.4, 0.28, 0.2, 0.14)
"""Lengths of planted directions, relative to the median norm of the model that gets them."""
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
    """Activations with directions added to the chat model's at the decisions of some prompts."""

    activations: Float[Tensor, "row d_in"]
    contrasts: tuple[ContrastRows, ...]
    sizes: tuple[float, ...]
    """Of each contrast, relative to the chat model's median norm."""
    frequencies: tuple[float, ...]

    def least_sizes(self, crosscoder: InferenceCrosscoder) -> dict[float, float]:
        """The least size found at each frequency, by a crosscoder trained on these activations.

        A size counts if carriers write half of the contrast on held-out prompts and tell these apart, at it and at all
        larger sizes; nan if none does.
        """
        least = dict.fromkeys(sorted(set(self.frequencies), reverse=True), float("nan"))
        missed: set[float] = set()
        for contrast, size, frequency in sorted(
            zip(self.contrasts, self.sizes, self.frequencies, strict=True), key=lambda each: -each[1]
        ):
            carriers = find_carriers(crosscoder, contrast)
            if carriers.share < LEAST_SHARE or not carriers.tells_apart:
                missed.add(frequency)
            elif frequency not in missed:
                least[frequency] = size
        return least


def plant_contrasts(
    activations: Float[Tensor, "row d_in"],
    decision_rows: Int[Tensor, " prompt"],
    held_out: Bool[Tensor, " _"],
    layout: StackedLayout,
    *,
    sizes: Sequence[float] = SIZES,
    frequencies: Sequence[float] = FREQUENCIES,
    seed: int = 0,
) -> PlantedContrasts:
    """Plant a contrast for each size and frequency: a random direction, added at the decisions of random prompts.

    Args:
        activations: raw stacked activations.
        decision_rows: the row of each prompt's decision token.
        held_out: by prompt.
    """
    generator = torch.Generator().manual_seed(seed)
    planted = activations.clone()
    chat = layout.split(planted)[-1]  # a view
    norm = torch.linalg.vector_norm(chat[decision_rows].float(), dim=1).median()
    drawn: list[tuple[float, float, Tensor]] = []
    for frequency in frequencies:
        for size in sizes:
            positive = torch.zeros(len(decision_rows), dtype=torch.bool)
            for part in (held_out, ~held_out):
                members = part.nonzero()[:, 0]
                n = max(2, round(frequency * len(members)))
                positive[members[torch.randperm(len(members), generator=generator)[:n]]] = True
            direction = torch.nn.functional.normalize(torch.randn(chat.shape[1], generator=generator), dim=0)
            chat[decision_rows[positive]] += (size * norm * direction).to(chat)
            drawn.append((size, frequency, positive))
    contrasts = tuple(
        ContrastRows(
            name=f"planted {size:g} {frequency:g}",
            activations=planted[decision_rows],
            positive=positive,
            held_out=held_out,
        )
        for size, frequency, positive in drawn
    )
    return PlantedContrasts(planted, contrasts, tuple(d[0] for d in drawn), tuple(d[1] for d in drawn))
