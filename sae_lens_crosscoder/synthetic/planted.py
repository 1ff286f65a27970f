"""Planted worlds: paired activations in which the truth about every concept is known.

`h^m = sum_i c_i^m u_i^m + offset^m + noise`: a concept i fires with a coefficient in each model, and writes it
along that model's direction. The kinds of concept are the cases that model diffing must tell apart, the two traps of
L1 crosscoders (weak and decoupled concepts) among them.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.synthetic.concepts import Concept, ConceptKind, as_of_pair, validate_kinds

# Far from the small seeds that people pass to torch. Otherwise a crosscoder with the same seed as its world would draw
# the same numbers and start with the true directions as its decoder.
_SEEDS = 1_700_000_000
SINK_GAIN = 100.0


@dataclass(frozen=True)
class PlantedTokens:
    """Sampled activations with the planted coefficients behind them."""

    activations: Float[Tensor, "token d_in"]
    coefficients: Float[Tensor, "token concept model"]
    is_sink: Bool[Tensor, " token"]
    places: Int[Tensor, " token"]
    """Index into `PlantedWorld.place_names`; 0 for tokens at no place."""

    def without_sinks(self) -> "PlantedTokens":
        """Return the tokens that are not sinks."""
        kept = ~self.is_sink
        return PlantedTokens(self.activations[kept], self.coefficients[kept], self.is_sink[kept], self.places[kept])


class PlantedWorld:
    """A fixed set of concepts, directions and offsets to sample tokens from.

    >>> world = PlantedWorld([Concept("shared", 0.1), Concept("chat_only", 0.1)], d_models=(4, 4))
    >>> tokens = world.sample(100, seed=1)
    >>> tuple(tokens.activations.shape), tuple(tokens.coefficients.shape)
    ((100, 8), (100, 2, 2))

    Args:
        d_models: widths of base and chat, or of more models, whose concepts are `shared` or `only_in` some of them. A
            model that differs in width from the first has unrelated directions of every concept.
        magnitude_cv: standard deviation of the coefficients (their mean is 1).
        noise: standard deviation of the Gaussian noise on every coordinate.
        offset_norm: length of each model's constant offset.
        directions: `spread` (pushed apart) or `random`.
        gains: factor on each model's activation, to make one model louder; None for 1.
        frac_sinks: share of the tokens that are sinks, with 100 times their activation in `sink_models` (None for
            all). All other tokens are those of the same world without sinks.
        turn_rank: dimension of the subspace in which rotated concepts turn; None lets each turn its own way.
    """

    def __init__(
        self,
        concepts: list[Concept],
        d_models: tuple[int, ...] = (64, 64),
        seed: int = 0,
        magnitude_cv: float = 0.25,
        noise: float = 0.02,
        offset_norm: float = 0.3,
        directions: Literal["spread", "random"] = "spread",
        gains: tuple[float, ...] | None = None,
        frac_sinks: float = 0.0,
        sink_models: Sequence[str] | None = None,
        turn_rank: int | None = None,
    ) -> None:
        self.concepts = concepts
        self.layout = StackedLayout(d_models)
        self.magnitude_cv = magnitude_cv
        self.noise = noise
        self.gains = torch.tensor(gains or [1.0] * len(d_models))
        self.frac_sinks = frac_sinks
        sinks = self.layout.names if sink_models is None else sink_models
        self.sink_gains = torch.tensor([SINK_GAIN if name in sinks else 1.0 for name in self.layout.names])
        validate_kinds(concepts, self.layout)
        angles = torch.tensor([concept.angle_degrees for concept in concepts]).deg2rad()[:, None]
        draw = spread_directions if directions == "spread" else _unit_directions
        generator = torch.Generator().manual_seed(_SEEDS + seed)
        base = draw(len(concepts), d_models[0], generator)
        parts = [base]
        for width in d_models[1:]:
            if width == d_models[0]:
                parts.append(angles.cos() * base + angles.sin() * _orthogonal_to(base, generator, turn_rank))
            else:
                parts.append(draw(len(concepts), width, generator))
        for index, concept in enumerate(concepts):
            if concept.near is not None:
                for part in parts:
                    part[index] = _leaning(part[index], part[concept.near], concept.cosine)
        self.directions: tuple[Tensor, ...] = tuple(parts)
        """Unit direction of every concept in each model, (concept, d_model) each."""
        self.offset = self.layout.stack([offset_norm * _unit_directions(1, d, generator)[0] for d in d_models])

    @property
    def l0(self) -> float:
        """Mean number of concepts that fire per token: the k at which a crosscoder can represent all of them."""
        return sum(self.firing_probability(index) for index in range(len(self.concepts)))

    @property
    def support_groups(self) -> Int[Tensor, " concept"]:
        """Index of the first concept of the same kind that fires on exactly the same tokens, for every concept.

        Such concepts cannot be told apart: any directions that span the same space explain the activations as well.
        """
        first: dict[tuple[str, int], int] = {}
        groups = []
        for index, concept in enumerate(self.concepts):
            lead = concept.fires_with if concept.share_of_lead == 1 else None
            lead = index if lead is None else lead
            groups.append(first.setdefault((concept.kind, lead), index))
        return torch.tensor(groups)

    @validate_arguments
    def of(self, first: int, second: int) -> "PlantedWorld":
        """The truth about two of the models, in the places of base and chat; sample tokens from the world of all."""
        pair = copy.copy(self)
        pair.concepts = [as_of_pair(concept, first, second) for concept in self.concepts]
        pair.layout = StackedLayout((self.layout.d_models[first], self.layout.d_models[second]))
        pair.directions = (self.directions[first], self.directions[second])
        pair.offset = torch.cat([self.layout.split(self.offset)[m] for m in (first, second)])
        pair.gains, pair.sink_gains = self.gains[[first, second]], self.sink_gains[[first, second]]
        return pair

    @validate_arguments
    def firing_probability(self, index: int) -> float:
        """Return the share of tokens on which a concept fires in either model."""
        concept = self.concepts[index]
        if concept.fires_with is None:
            return concept.firing_probability
        return concept.share_of_lead * self.concepts[concept.fires_with].firing_probability

    @property
    def place_names(self) -> tuple[str, ...]:
        """Name of each token group: `elsewhere`, then one per place."""
        return ("elsewhere", *(f"place {index}" for index, concept in enumerate(self.concepts) if concept.is_place))

    @validate_arguments
    def indices(self, kind: ConceptKind) -> list[int]:
        """Return the indices of all concepts of one kind."""
        return [index for index, concept in enumerate(self.concepts) if concept.kind == kind]

    @validate_arguments
    def sample(self, n_tokens: int, seed: int) -> PlantedTokens:
        """Draw tokens. The same seed gives the same tokens."""
        generator = torch.Generator().manual_seed(_SEEDS + seed)
        shape = (n_tokens, len(self.concepts))
        p = torch.tensor([concept.firing_probability for concept in self.concepts])
        fires = torch.rand(shape, generator=generator) < p
        places = self._places(n_tokens, generator)
        at_place = [index for index, concept in enumerate(self.concepts) if concept.is_place]
        fires[:, at_place] = places[:, None] == torch.arange(1, 1 + len(at_place))
        leads = [index if c.fires_with is None else c.fires_with for index, c in enumerate(self.concepts)]
        sizes = torch.tensor([concept.size for concept in self.concepts])
        magnitude = (1 + self.magnitude_cv * torch.randn(shape, generator=generator)).clamp(min=0.1) * sizes
        fires = self._with_leads(fires[:, leads], generator)
        coefficients = (magnitude * fires)[..., None] * self._shares(shape, generator)
        parts = [coefficients[..., m] @ directions for m, directions in enumerate(self.directions)]
        clean = self.layout.stack(parts) + self.offset
        noisy = clean + self.noise * torch.randn(clean.shape, generator=generator)
        activations = noisy * self.layout.expand(self.gains)
        is_sink = torch.rand(n_tokens, generator=generator) < self.frac_sinks
        activations[is_sink] *= self.layout.expand(self.sink_gains)
        return PlantedTokens(activations, coefficients, is_sink, places)

    def _places(self, n_tokens: int, generator: torch.Generator) -> Int[Tensor, " token"]:
        """Draw the place of each token; 0 is none. Worlds without places draw nothing."""
        borders = torch.tensor([concept.firing_probability for concept in self.concepts if concept.is_place])
        if len(borders) == 0:
            return torch.zeros(n_tokens, dtype=torch.int64)
        draws = torch.rand(n_tokens, generator=generator)
        place = torch.searchsorted(borders.cumsum(dim=0), draws, right=True) + 1
        return torch.where(place <= len(borders), place, 0)

    def _with_leads(
        self, fires: Bool[Tensor, "token concept"], generator: torch.Generator
    ) -> Bool[Tensor, "token concept"]:
        """Drop firings of concepts that fire on a share of the tokens of another one."""
        shares = torch.tensor([1.0 if c.fires_with is None else c.share_of_lead for c in self.concepts])
        if bool((shares == 1).all()):
            return fires
        return fires & (torch.rand(fires.shape, generator=generator) < shares)

    def _shares(self, shape: tuple[int, int], generator: torch.Generator) -> Float[Tensor, "token concept model"]:
        """Return the share of a firing that reaches each model."""
        shares = torch.ones(*shape, self.layout.n_sources)
        coin = torch.rand(shape, generator=generator)
        for index, concept in enumerate(self.concepts):
            match concept.kind:
                case "chat_only":
                    shares[:, index, 0] = 0
                case "base_only":
                    shares[:, index, 1] = 0
                case "weak":
                    shares[:, index, 0] = concept.rho
                case "weakened":
                    shares[:, index, 1] = concept.rho
                case "decoupled":
                    alone = (1 - concept.q) / 2
                    shares[:, index, 0] = (coin[:, index] >= alone).float()
                    shares[:, index, 1] = (coin[:, index] < 1 - alone).float()
                case "less_used":
                    shares[:, index, 0] = (coin[:, index] < concept.q).float()
                case "only_in":
                    shares[:, index] = 0
                    shares[:, index, list(concept.models)] = 1
                case "shared" | "rotated":
                    pass
        return shares


def spread_directions(n: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "concept d_model"]:
    """Return unit directions pushed apart by gradient descent on the fourth power of their cosines."""
    directions = _unit_directions(n, d_model, generator)
    off_diagonal = 1 - torch.eye(n)
    for _ in range(300):
        gram = (directions @ directions.T) * off_diagonal
        directions = torch.nn.functional.normalize(directions - 0.5 * gram.pow(3) @ directions, dim=-1)
    return directions


def _unit_directions(n: int, d_model: int, generator: torch.Generator) -> Float[Tensor, "concept d_model"]:
    return torch.nn.functional.normalize(torch.randn(n, d_model, generator=generator), dim=-1)


def _leaning(
    direction: Float[Tensor, " d_model"], towards: Float[Tensor, " d_model"], cosine: float
) -> Float[Tensor, " d_model"]:
    """Return a unit direction in the plane of both that has this cosine to the second."""
    across = torch.nn.functional.normalize(direction - (direction @ towards) * towards, dim=-1)
    return cosine * towards + (1 - cosine**2) ** 0.5 * across


def _orthogonal_to(
    directions: Float[Tensor, "concept d_model"], generator: torch.Generator, rank: int | None
) -> Float[Tensor, "concept d_model"]:
    """Return unit vectors, each orthogonal to its direction, from a random subspace of this rank (None: anywhere)."""
    n, width = directions.shape
    draws = torch.randn(n, width if rank is None else rank, generator=generator)
    if rank is not None:
        draws = draws @ torch.randn(rank, width, generator=generator)
    across = draws - (draws * directions).sum(dim=-1, keepdim=True) * directions
    return torch.nn.functional.normalize(across, dim=-1)
