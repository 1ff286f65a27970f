"""The standard planted world, its variations, and a null world."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.synthetic.concepts import Concept
from sae_lens_crosscoder.synthetic.planted import PlantedWorld

N_CONCEPTS = 174
PROBABILITIES = (0.01, 0.05)


@validate_arguments
def world_a(
    seed: int,
    *,
    d_models: tuple[int, int] = (64, 64),
    probabilities: tuple[float, float] = PROBABILITIES,
    exclusive_probability: float | None = None,
    exclusive_size: float = 1.0,
    co_occurring: bool = False,
    mirrored: bool = False,
    less_used: bool = False,
    **world: Any,
) -> PlantedWorld:
    """Build the standard world: 174 concepts, 16 of them chat-only, with 24 weak and 18 decoupled traps.

    >>> world = world_a(seed=0)
    >>> len(world.concepts), len(world.indices("chat_only")), world.layout.d_models
    (174, 16, (64, 64))

    Args:
        d_models: widths of base and chat. If they differ, the 12 rotated concepts become shared ones.
        probabilities: range of the firing probabilities, drawn log-uniformly.
        exclusive_probability: firing probability of the chat-only concepts, to make them rare.
        exclusive_size: factor on the coefficients of the chat-only concepts.
        co_occurring: let every second chat-only concept fire on the tokens of the concept before it.
        mirrored: make the weak concepts strong in base and weak in chat, as after fine-tuning that suppresses them.
        less_used: let 16 of the shared concepts fire in base on 0.2 to 0.8 of the tokens on which they fire in chat.
        world: further arguments of `PlantedWorld`.
    """
    draws = iter(_probabilities(seed, *probabilities))
    concepts = [Concept("shared", next(draws)) for _ in range(96)]
    concepts += [Concept("chat_only", next(draws), size=exclusive_size) for _ in range(16)]
    concepts += [Concept("base_only", next(draws)) for _ in range(8)]
    weak = "weakened" if mirrored else "weak"
    concepts += [Concept(weak, next(draws), rho=rho) for rho in (0.25, 0.35, 0.5) for _ in range(8)]
    concepts += [Concept("decoupled", next(draws), q=q) for q in (0.4, 0.6, 0.8) for _ in range(6)]
    if d_models[0] == d_models[1]:
        concepts += [Concept("rotated", next(draws), angle_degrees=angle) for angle in (45.0, 90.0) for _ in range(6)]
    else:
        concepts += [Concept("shared", next(draws)) for _ in range(12)]
    for index in range(96, 112):
        if exclusive_probability is not None:
            concepts[index] = replace(concepts[index], firing_probability=exclusive_probability)
        if co_occurring and index % 2:
            concepts[index] = replace(concepts[index], fires_with=index - 1)
    if less_used:
        concepts[:16] = [replace(c, kind="less_used", q=0.2 + 0.04 * i) for i, c in enumerate(concepts[:16])]
    return PlantedWorld(concepts, d_models, seed, **world)


@validate_arguments
def null_world(seed: int, *, d_models: tuple[int, int] = (64, 64), **world: Any) -> PlantedWorld:
    """Build the null twin of `world_a`: its concepts, all in both models, each turned by up to 15 degrees.

    Firing probabilities, sizes and pairs are those of `world_a` with the same arguments. Between models of different
    width nothing can be turned, so all concepts are shared.
    """
    world.setdefault("noise", 0.03)
    twin = world_a(seed, d_models=d_models, **world)
    turns = [15 * turn for turn in torch.rand(N_CONCEPTS, generator=_generator(seed)).tolist()]
    options = {name: value for name, value in world.items() if name not in _CONCEPT_OPTIONS}
    return PlantedWorld(_as_shared(twin, turns), d_models, seed, **options)


_CONCEPT_OPTIONS = (
    "probabilities", "exclusive_probability", "exclusive_size", "co_occurring", "mirrored", "less_used"
)  # fmt: skip


def _as_shared(world: PlantedWorld, turns: Sequence[float]) -> list[Concept]:
    """Return the concepts with everything that differs between the models removed, turned by these angles."""
    kind = "rotated" if world.layout.same_width else "shared"
    return [
        replace(c, kind=kind, rho=1.0, q=1.0, angle_degrees=turn if world.layout.same_width else 0.0)
        for c, turn in zip(world.concepts, turns, strict=True)
    ]


N_ADAPTED = 8
ADAPTER_SHIFT = (0.05, 0.1)


@validate_arguments
def lora_world(seed: int, *, null: bool = False, **world: Any) -> PlantedWorld:
    """Build what a LoRA adapter makes: all concepts move a little within a few dimensions, and nine are exclusive.

    Every concept of `world_a`'s firing probabilities is in both models, and differs by 0.05 to 0.1 of its length, in a
    subspace of 8 dimensions. Six chat-only and three base-only concepts are the exception.

    Args:
        null: make these nine shared as well.
    """
    shifts = torch.rand(N_CONCEPTS, generator=_generator(seed + 30_000)).tolist()
    low, high = ADAPTER_SHIFT
    turns = [math.degrees(2 * math.asin((low + (high - low) * shift) / 2)) for shift in shifts]
    concepts = _as_shared(world_a(seed), turns)
    if not null:
        for index in (*range(96, 102), *range(112, 115)):
            kind = "chat_only" if index < 112 else "base_only"
            concepts[index] = replace(concepts[index], kind=kind, angle_degrees=0.0)
    return PlantedWorld(concepts, seed=seed, turn_rank=N_ADAPTED, **world)


N_PLACES = 8
PLACE_PROBABILITY = 0.03
BACKGROUND_SIZE = 3.0


@validate_arguments
def background_world(seed: int, *, null: bool = False, **world: Any) -> PlantedWorld:
    """Build the standard world with a background: 8 places, on all tokens of which a shared concept fires strongly.

    Half of the chat-only and half of the base-only concepts fire at one place only, on 0.3 to 0.7 of its tokens. Their
    direction has cosine 0.5 to 0.8 to that of the shared concept. Latent Scaling through the origin takes the
    background for the concept.

    Args:
        null: the same places in the null world, in which nothing differs and these concepts are shared.
        world: further arguments of `PlantedWorld`.
    """
    standard = null_world(seed) if null else world_a(seed)
    concepts = list(standard.concepts)
    first = len(concepts)
    concepts += [Concept("shared", PLACE_PROBABILITY, size=BACKGROUND_SIZE, is_place=True) for _ in range(N_PLACES)]
    draws = iter(torch.rand(2 * N_CONCEPTS, generator=_generator(seed + 20_000)).tolist())
    lead = first
    for index in (*range(96, 112, 2), *range(112, 120, 2)):
        changes = {"fires_with": lead, "near": lead, "share_of_lead": 0.3 + 0.4 * next(draws)}
        concepts[index] = replace(concepts[index], **changes, cosine=0.5 + 0.3 * next(draws))
        lead = first + (lead - first + 1) % N_PLACES
    world.setdefault("noise", standard.noise)
    return PlantedWorld(concepts, seed=seed, **world)


_CHANGING = ((2,), (1, 2), (0, 1), (0,), (1,))
"""Places of the models that have a changing concept: it emerges late or early, vanishes late or early, or passes."""


@validate_arguments
def family_world(
    seed: int, *, null: bool = False, d_models: tuple[int, int, int] = (64, 64, 64), **world: Any
) -> PlantedWorld:
    """Build three models, such as base, a checkpoint and chat, between which concepts emerge, persist and vanish.

    Of 174 concepts 114 persist; 12 emerge and 12 vanish at either step, and 12 are in the middle model alone.

    >>> world = family_world(seed=0)
    >>> len(world.indices("shared")), len(world.of(0, 2).indices("chat_only")), len(world.of(0, 1).indices("base_only"))
    (114, 24, 12)

    Args:
        null: let all concepts persist.
        world: further arguments of `PlantedWorld`.
    """
    draws = _probabilities(seed, *PROBABILITIES)
    concepts = [Concept("shared", probability) for probability in draws[: 114 if not null else None]]
    for index, probability in enumerate(draws[len(concepts) :]):
        concepts.append(Concept("only_in", probability, models=_CHANGING[index // 12]))
    return PlantedWorld(concepts, d_models, seed, **world)


def _probabilities(seed: int, low: float, high: float) -> list[float]:
    places = torch.rand(N_CONCEPTS, generator=_generator(seed + 10_000), dtype=torch.float64)
    return [math.exp(math.log(low) + (math.log(high) - math.log(low)) * place) for place in places.tolist()]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_800_000_000 + seed)
