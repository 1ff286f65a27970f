"""The standard planted world, its variations, and a null world."""

import math
from dataclasses import replace
from typing import Any

import torch

from sae_lens_crosscoder.synthetic.planted import Concept, PlantedWorld

N_CONCEPTS = 174
PROBABILITIES = (0.01, 0.05)


def world_a(
    seed: int,
    *,
    d_models: tuple[int, int] = (64, 64),
    probabilities: tuple[float, float] = PROBABILITIES,
    exclusive_probability: float | None = None,
    exclusive_size: float = 1.0,
    co_occurring: bool = False,
    mirrored: bool = False,
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
    return PlantedWorld(concepts, d_models, seed, **world)


def null_world(seed: int, *, d_models: tuple[int, int] = (64, 64), **world: Any) -> PlantedWorld:
    """Build a null world: 174 shared concepts, each turned by up to 15 degrees between the models."""
    turns = torch.rand(N_CONCEPTS, generator=_generator(seed)).tolist()
    drawn = zip(_probabilities(seed, *PROBABILITIES), turns, strict=True)
    concepts = [Concept("rotated", p, angle_degrees=15 * turn) for p, turn in drawn]
    world.setdefault("noise", 0.03)
    return PlantedWorld(concepts, d_models, seed, **world)


N_PLACES = 8
PLACE_PROBABILITY = 0.03
BACKGROUND_SIZE = 3.0


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


def _probabilities(seed: int, low: float, high: float) -> list[float]:
    places = torch.rand(N_CONCEPTS, generator=_generator(seed + 10_000), dtype=torch.float64)
    return [math.exp(math.log(low) + (math.log(high) - math.log(low)) * place) for place in places.tolist()]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(1_800_000_000 + seed)
