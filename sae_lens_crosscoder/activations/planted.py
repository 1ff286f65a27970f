"""Paired activations with known answers: worlds in which the truth about every concept is planted.

`h^m = sum_i c_i^m u_i^m + offset^m + noise`: a concept i fires with a coefficient in each model, and writes it
along that model's direction. The kinds of concept are the cases that model diffing must tell apart, the two traps of
L1 crosscoders (weak and decoupled concepts) among them.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.stacking import StackedLayout

ConceptKind = Literal["shared", "chat_only", "base_only", "weak", "decoupled", "rotated"]


@dataclass(frozen=True)
class Concept:
    """One planted concept; `kind` says which of the parameters matters."""

    kind: ConceptKind
    firing_probability: float
    rho: float = 1.0
    """weak: the base model's coefficient as a share of the chat model's."""
    q: float = 1.0
    """decoupled: the probability that a firing is in both models; otherwise it is in either one alone."""
    angle_degrees: float = 0.0
    """rotated: the angle between the models' directions."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(ConceptKind):
            raise ValueError(f"kind={self.kind!r} is not one of {get_args(ConceptKind)}.")
        for name in ("firing_probability", "rho", "q"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1]: it is a probability or a share.")
        if self.angle_degrees and self.kind != "rotated":
            raise ValueError(
                f"angle_degrees={self.angle_degrees} turns 'rotated' concepts only, not {self.kind!r} ones."
            )


@dataclass(frozen=True)
class PlantedTokens:
    """Activations with the truth that made them."""

    activations: Float[Tensor, "token d_in"]
    coefficients: Float[Tensor, "token concept model"]


class PlantedWorld:
    """A fixed set of concepts, directions and offsets, from which tokens are drawn.

    >>> world = world_a(seed=0)
    >>> tokens = world.sample(100, seed=1)
    >>> tuple(tokens.activations.shape), tuple(tokens.coefficients.shape)
    ((100, 128), (100, 174, 2))
    """

    def __init__(
        self,
        concepts: list[Concept],
        d_model: int = 64,
        seed: int = 0,
        magnitude_cv: float = 0.25,
        noise: float = 0.02,
        offset_norm: float = 0.3,
    ) -> None:
        self.concepts = concepts
        self.layout = StackedLayout((d_model, d_model))
        self.magnitude_cv = magnitude_cv
        self.noise = noise
        generator = torch.Generator().manual_seed(seed)
        base = spread_directions(len(concepts), d_model, generator)
        angles = torch.tensor([concept.angle_degrees for concept in concepts]).deg2rad()[:, None]
        aside = _orthogonal_to(base, generator)
        self.directions: tuple[Tensor, Tensor] = (base, angles.cos() * base + angles.sin() * aside)
        """Unit direction of every concept in base and chat, each (concept, d_model)."""
        offsets = torch.randn(2, d_model, generator=generator)
        self.offset = self.layout.stack(list(offset_norm * torch.nn.functional.normalize(offsets, dim=-1)))

    @property
    def l0(self) -> float:
        """Concepts that fire per token, on average: the k at which a crosscoder has room for each."""
        return sum(concept.firing_probability for concept in self.concepts)

    def indices(self, kind: ConceptKind) -> list[int]:
        return [index for index, concept in enumerate(self.concepts) if concept.kind == kind]

    def sample(self, n_tokens: int, seed: int) -> PlantedTokens:
        """Draw tokens; the same seed gives the same tokens."""
        generator = torch.Generator().manual_seed(seed)
        shape = (n_tokens, len(self.concepts))
        p = torch.tensor([concept.firing_probability for concept in self.concepts])
        fires = torch.rand(shape, generator=generator) < p
        size = (1 + self.magnitude_cv * torch.randn(shape, generator=generator)).clamp(min=0.1) * fires
        shares = self._shares(shape, generator)
        coefficients = size[..., None] * shares
        parts = [coefficients[..., m] @ directions for m, directions in enumerate(self.directions)]
        clean = self.layout.stack(parts) + self.offset
        return PlantedTokens(clean + self.noise * torch.randn(clean.shape, generator=generator), coefficients)

    def _shares(self, shape: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "token concept model"]:
        """What share of a firing reaches each model."""
        shares = torch.ones(*shape, 2)
        coin = torch.rand(shape, generator=generator)
        for index, concept in enumerate(self.concepts):
            match concept.kind:
                case "chat_only":
                    shares[:, index, 0] = 0
                case "base_only":
                    shares[:, index, 1] = 0
                case "weak":
                    shares[:, index, 0] = concept.rho
                case "decoupled":
                    alone = (1 - concept.q) / 2
                    shares[:, index, 0] = (coin[:, index] >= alone).float()
                    shares[:, index, 1] = (coin[:, index] < 1 - alone).float()
                case "shared" | "rotated":
                    pass
        return shares


def world_a(seed: int, d_model: int = 64) -> PlantedWorld:
    """The standard world: 174 concepts, 16 of them chat-only, with 24 weak and 18 decoupled ones as traps."""
    generator = torch.Generator().manual_seed(seed + 10_000)
    low, high = math.log(0.01), math.log(0.05)
    draws = (math.exp(low + (high - low) * u) for u in torch.rand(174, generator=generator).tolist())
    concepts = [Concept("shared", next(draws)) for _ in range(96)]
    concepts += [Concept("chat_only", next(draws)) for _ in range(16)]
    concepts += [Concept("base_only", next(draws)) for _ in range(8)]
    concepts += [Concept("weak", next(draws), rho=rho) for rho in (0.25, 0.35, 0.5) for _ in range(8)]
    concepts += [Concept("decoupled", next(draws), q=q) for q in (0.4, 0.6, 0.8) for _ in range(6)]
    concepts += [Concept("rotated", next(draws), angle_degrees=angle) for angle in (45.0, 90.0) for _ in range(6)]
    return PlantedWorld(concepts, d_model=d_model, seed=seed)


def null_world(seed: int, d_model: int = 64) -> PlantedWorld:
    """Nothing differs but noise: 174 shared concepts, each turned by up to 15 degrees between the models."""
    generator = torch.Generator().manual_seed(seed + 20_000)
    low, high = math.log(0.01), math.log(0.05)
    draws = torch.rand(174, 2, generator=generator).tolist()
    concepts = [Concept("rotated", math.exp(low + (high - low) * p), angle_degrees=15 * turn) for p, turn in draws]
    return PlantedWorld(concepts, d_model=d_model, seed=seed, noise=0.03)


def shuffled_batches(
    activations: Float[Tensor, "token d_in"], batch_size: int, seed: int
) -> Iterator[Float[Tensor, "batch d_in"]]:
    """An endless stream of batches, each epoch in a new order; a remainder smaller than a batch is left out.

    >>> batches = shuffled_batches(torch.arange(6.0)[:, None], batch_size=3, seed=0)
    >>> sorted(torch.cat([next(batches), next(batches)]).squeeze().tolist())
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]
    """
    if len(activations) < batch_size:
        raise ValueError(
            f"{len(activations)} tokens do not fill one batch of {batch_size}: give more, or less a batch."
        )
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(len(activations), generator=generator)
        for rows in order.split(batch_size):
            if len(rows) == batch_size:
                yield activations[rows]


def spread_directions(n: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "concept d_model"]:
    """Unit directions pushed apart by descending on the fourth power of their cosines."""
    directions = torch.nn.functional.normalize(torch.randn(n, d_model, generator=generator), dim=-1)
    off_diagonal = 1 - torch.eye(n)
    for _ in range(300):
        gram = (directions @ directions.T) * off_diagonal
        directions = torch.nn.functional.normalize(directions - 0.5 * gram.pow(3) @ directions, dim=-1)
    return directions


def _orthogonal_to(
    directions: Float[Tensor, "concept d_model"], generator: torch.Generator
) -> Float[Tensor, "concept d_model"]:
    draws = torch.randn(directions.shape, generator=generator)
    across = draws - (draws * directions).sum(dim=-1, keepdim=True) * directions
    return torch.nn.functional.normalize(across, dim=-1)
