"""Wordings of one behaviour: changes whose prompts the latents of either cannot tell apart as they do others."""

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
    held-out prompts are more like its own than like the rest: the AUROC between the two is below the AUROC between the
    other and the rest. Carriers that tell nothing apart join nothing.

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
        """True if the carriers of either find the other's prompts more like their own than like the rest."""
        if self.change.writer != other.change.writer:
            return False
        rest = held_out & self.without & other.without
        return self._resembles(other, rest, held_out) and other._resembles(self, rest, held_out)

    def _resembles(self, other: "_Scored", rest: Bool[Tensor, " prompt"], held_out: Bool[Tensor, " prompt"]) -> bool:
        if self.scores is None:
            return False
        own, others = (self.scores[_mask(each.change, held_out)] for each in (self, other))
        if not (len(own) and len(others) and bool(rest.any())):
            return False
        return separation(own, others) < separation(others, self.scores[rest])


def _mask(change: PhraseChange, held_out: Bool[Tensor, " prompt"]) -> Bool[Tensor, " prompt"]:
    mask = torch.zeros_like(held_out)
    mask[list(change.prompts)] = True
    return mask & held_out
