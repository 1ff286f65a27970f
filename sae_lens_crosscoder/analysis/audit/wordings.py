"""Wordings of one behaviour: changes whose prompts the same latents tell from the rest, and not from each other."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.analysis.answers.behaviour import Behaviour
from sae_lens_crosscoder.analysis.answers.phrases import PhraseChange
from sae_lens_crosscoder.analysis.audit.carriers import find_carriers, separation, written_along
from sae_lens_crosscoder.crosscoders.inference import InferenceCrosscoder

_MOST_BETWEEN = 1 / 3
"""AUROC over 1/2 between the prompts of two wordings, relative to that from the rest."""


@dataclass(frozen=True)
class ComparedChange:
    """A change with what decides which others are the same behaviour in other words."""

    change: PhraseChange
    without: Bool[Tensor, " prompt"]
    """True for prompts to which neither model answers with the phrase."""
    contrast: ContrastRows | None
    """Its prompts against others at their decisions; None for too few."""


def join_wordings(
    crosscoder: InferenceCrosscoder,
    compared: Sequence[ComparedChange],
    activations: Float[Tensor, "prompt d_in"],
    held_out: Bool[Tensor, " prompt"],
) -> list[Behaviour]:
    """Join changes that are one behaviour in several wordings.

    A model that answers one kind of prompt in one of several ways has one behaviour, and one phrase alone would set its
    prompts against the others of the same kind. Two changes are joined if, to the carriers of each, the other's
    held-out prompts are more like its own than like the rest: the AUROC between the two is below that between the other
    and the rest. On average over the carriers of both, it may also exceed 1/2 by at most a third as much: it is 1/2 if
    the carriers are the same latents, and 1 if each has its own. Carriers that do not tell their own prompts apart join
    nothing.

    Args:
        compared: significant changes, the most frequent first.
        activations: raw stacked activations at every prompt's decision.
        held_out: True for prompts that no latent is chosen on.

    Returns:
        One per behaviour, in the order of their most frequent wordings.
    """
    scored = [_Scored.of(crosscoder, each, activations) for each in compared]
    joined: list[list[_Scored]] = []
    for each in scored:
        place = next((group for group in joined if each.is_like(group[0], held_out)), None)
        if place is None:
            joined.append([each])
        else:
            place.append(each)
    return [Behaviour(tuple(each.change for each in group)) for group in joined]


@dataclass(frozen=True)
class _Scored:
    """A change, and what its carriers write along it at every prompt's decision."""

    change: PhraseChange
    without: Bool[Tensor, " prompt"]
    scores: Float[Tensor, " prompt"] | None
    """None if its carriers do not tell its prompts apart."""

    @classmethod
    def of(
        cls, crosscoder: InferenceCrosscoder, compared: ComparedChange, activations: Float[Tensor, "prompt d_in"]
    ) -> "_Scored":
        change, contrast = compared.change, compared.contrast
        if contrast is None or not find_carriers(crosscoder, contrast).tells_apart:
            return cls(change, compared.without, None)
        return cls(change, compared.without, written_along(crosscoder, contrast, activations))

    def is_like(self, other: "_Scored", held_out: Bool[Tensor, " prompt"]) -> bool:
        """True if the carriers of both find the other's prompts more like their own than like the rest."""
        if self.change.writer != other.change.writer or self.scores is None or other.scores is None:
            return False
        own, others = (_mask(each.change, held_out) for each in (self, other))
        rest = held_out & self.without & other.without
        if not (bool(own.any()) and bool(others.any()) and bool(rest.any())):
            return False
        mine, its = self.scores, other.scores
        between = (separation(mine[own], mine[others]), separation(its[others], its[own]))
        from_rest = (separation(mine[others], mine[rest]), separation(its[own], its[rest]))
        is_nearer = all(near < far for near, far in zip(between, from_rest, strict=True))
        return is_nearer and sum(between) - 1 <= _MOST_BETWEEN * (sum(from_rest) - 1)


def _mask(change: PhraseChange, held_out: Bool[Tensor, " prompt"]) -> Bool[Tensor, " prompt"]:
    mask = torch.zeros_like(held_out)
    mask[list(change.prompts)] = True
    return mask & held_out
