"""Planted concepts: in which models they exist, and how."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.storage.field_types import validate_config

ConceptKind = Literal[
    "shared", "chat_only", "base_only", "weak", "weakened", "decoupled", "less_used", "rotated", "only_in"
]


@dataclass(frozen=True)
class Concept:
    """One planted concept. `kind` decides which of the parameters are used."""

    kind: ConceptKind
    firing_probability: float
    rho: float = 1.0
    """weak: base coefficient divided by chat coefficient. weakened: chat coefficient divided by base coefficient."""
    q: float = 1.0
    """decoupled: probability that a firing occurs in both models. Otherwise it occurs in one of them, at random.
    less_used: probability that the concept fires in base where it fires in chat; it fires nowhere else in base."""
    models: tuple[int, ...] = ()
    """only_in: places of the models that have the concept, in a world of any number of models."""
    angle_degrees: float = 0.0
    """rotated: the angle between the models' directions."""
    size: float = 1.0
    """Multiplies the coefficients of both models."""
    fires_with: int | None = None
    """Index of another concept. This concept then fires on its tokens only, and `firing_probability` is ignored."""
    share_of_lead: float = 1.0
    """Share of the tokens of the concept it fires with on which it fires; 1 is exactly its tokens."""
    is_place: bool = False
    """The concept fires on all tokens of one place, such as a position of the chat template; places are disjoint."""
    near: int | None = None
    """Index of another concept, itself near none, that this concept's direction leans towards in both models."""
    cosine: float = 0.0
    """Cosine between this concept's direction and that of the concept `near`."""

    def __post_init__(self) -> None:
        validate_config(self)
        if self.kind not in get_args(ConceptKind):
            raise ValueError(f"kind={self.kind!r} is invalid: choose one of {get_args(ConceptKind)}.")
        for name in ("firing_probability", "rho", "q", "share_of_lead", "cosine"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} is invalid: expected a number in [0, 1].")
        if self.angle_degrees and self.kind != "rotated":
            raise ValueError(
                f"angle_degrees={self.angle_degrees} applies to kind='rotated' only, not to kind={self.kind!r}."
            )


def as_of_pair(concept: Concept, first: int, second: int) -> Concept:
    """The concept as one of two models."""
    if concept.kind != "only_in":
        return concept
    match (first in concept.models, second in concept.models):
        case (True, True):
            return replace(concept, kind="shared", models=())
        case (False, True):
            return replace(concept, kind="chat_only", models=())
        case (True, False):
            return replace(concept, kind="base_only", models=())
        case _:
            return replace(concept, models=())


def validate_kinds(concepts: Sequence[Concept], layout: StackedLayout) -> None:
    """Raise a ValueError for concepts that a world of these models cannot have."""
    for concept in concepts:
        if concept.angle_degrees and not (layout.is_pair and layout.same_width):
            raise ValueError(f"Rotated concepts need two models of equal width, but d_models={layout.d_models}.")
        if not layout.is_pair and concept.kind not in ("shared", "only_in"):
            raise ValueError(f"kind={concept.kind!r} is for two models, but d_models={layout.d_models}. Use 'only_in'.")
        if not set(concept.models) <= set(range(layout.n_sources)):
            raise ValueError(f"models={concept.models} must be places below {layout.n_sources}, the number of models.")
