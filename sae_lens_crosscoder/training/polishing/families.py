"""Finds a family anew: an atom that fires on all tokens of some kind, and those that fire only where it does.

On tokens of one kind many dictionaries have the same error: two atoms that are always on divide the parent and a child
between them, or one atom has both and another takes the child away where it is absent. Nothing is nested in either.
What tells the true parent from a mixture are the tokens on which it is alone: what the family explains then points one
way, up to the noise. That direction is the parent; the one that most of the other tokens share beside it is a child.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from sae_lens_crosscoder.crosscoders.sparse_step.pairs import ActivePairs
from sae_lens_crosscoder.training.polishing.nesting import MIN_INSIDE, MIN_TOKENS, code_products

_ALONE = 0.08
"""Least share of a parent's tokens on which it is alone: on a quarter with two children that fire on half of them."""
_PEAK = 0.55
"""Least share of the tokens within twice the noise of the parent that are within the noise. Codes that vary smoothly
have half or fewer there: two atoms that always fire together, with sizes of their own, show no parent."""
_SAME_COSINE = 0.9995
"""A parent this near to the direction of its lone tokens is right, and its family stays as it is."""
_LEAST_SHARE, _LEAST_TOKENS = 0.02, 4
_MOST_TOKENS = 512
_REFINEMENTS = 3


class Family(NamedTuple):
    """An atom, and atoms that fire only where it does."""

    parent: int
    children: list[int]

    @property
    def atoms(self) -> list[int]:
        return [self.parent, *self.children]


@torch.no_grad()
def families_of(pairs: ActivePairs, values: Float[Tensor, " pairs"]) -> list[Family]:
    """Find families in codes, those of the strongest parents first. An atom is in one family at most."""
    together = code_products(pairs, torch.ones_like(values), torch.ones_like(values))
    (parent, child), n = together.indices(), together.values()
    n_tokens = torch.bincount(pairs.latent, minlength=pairs.d_sae)
    inside = (n >= MIN_INSIDE * n_tokens[child]) & (n_tokens[child] >= MIN_TOKENS) & (parent != child)
    children: dict[int, list[int]] = {}
    for i, j in zip(parent[inside].tolist(), child[inside].tolist(), strict=True):
        children.setdefault(i, []).append(j)
    energy = values.new_zeros(pairs.d_sae).index_add(0, pairs.latent, values.square())
    families: list[Family] = []
    taken: set[int] = set()
    for i in sorted(children, key=lambda atom: -float(energy[atom])):
        free = [j for j in children[i] if j not in taken]
        if i not in taken and free:
            families.append(Family(i, free))
            taken.update(families[-1].atoms)
    return families


@torch.no_grad()
def with_lone_parents(
    W_dec: Float[Tensor, "d_sae d_in"],
    pairs: ActivePairs,
    values: Float[Tensor, " pairs"],
    residual: Float[Tensor, "token d_in"],
    noise: float,
    min_gain: float,
) -> Iterator[tuple[list[int], Float[Tensor, "family d_in"]]]:
    """Yield the atoms of each family whose parent is a mixture, and their new rows: of length 1, or 0 for no atom.

    Args:
        W_dec, pairs, values, residual: the tokens are `b + f W_dec + residual`, with codes f.
        noise: standard deviation of a coordinate of the noise.
        min_gain: energy that an atom must explain.
    """
    for family in families_of(pairs, values):
        rows = W_dec[family.atoms]
        basis = torch.linalg.qr(rows.T).Q
        written = _written(family, W_dec, pairs, values, residual) @ basis
        found = family_directions(written, noise, min_gain)
        if len(found) and float(normalize(rows[0], dim=0) @ (basis @ found[0])) < _SAME_COSINE:
            new = torch.zeros_like(rows)
            new[: len(found)] = found @ basis.T
            yield family.atoms, new


def _written(
    family: Family, W_dec: Tensor, pairs: ActivePairs, values: Tensor, residual: Tensor
) -> Float[Tensor, "token d_in"]:
    """What the family and nothing else should explain, on the first 512 tokens of the parent."""
    order, token, starts = pairs.by_latent

    def run(atom: int) -> slice:
        stop = int(starts[atom + 1]) if atom + 1 < pairs.d_sae else len(pairs)
        return slice(int(starts[atom]), stop)

    rows = token[run(family.parent)][:_MOST_TOKENS]
    place = torch.full((pairs.n_tokens,), -1, device=token.device)
    place[rows] = torch.arange(len(rows), device=token.device)
    written = residual[rows].clone()
    for atom in family.atoms:
        at = place[token[run(atom)]]
        size = values[order[run(atom)]][at >= 0]
        written.index_add_(0, at[at >= 0], size[:, None] * W_dec[atom])
    return written


@torch.no_grad()
def family_directions(
    written: Float[Tensor, "token coordinate"], noise: float, min_gain: float
) -> Float[Tensor, "found coordinate"]:
    """Unit directions of a family, at most as many as coordinates: the parent's first, or none without lone tokens.

    Every further direction is the one that most tokens share in what the former ones leave, until fewer than 2 % of
    the tokens share any.

    Args:
        written: what the family explains, in coordinates of its span.
    """
    n, width = written.shape
    limit = _noise_limit(noise, width)
    left, found = written, list[Tensor]()
    while len(found) < width:
        loud = left if not found else left[left.square().sum(dim=1) > max(min_gain, limit)]
        least = max(_LEAST_TOKENS, (_LEAST_SHARE if found else _ALONE) * n)
        if len(loud) < least:
            break
        direction, shared = shared_direction(loud, noise)
        n_near = int(shared.sum())
        if n_near < least or (not found and n_near < _PEAK * int(_shares(loud, direction, 4 * limit).sum())):
            break
        found.append(direction)
        left = left - (left @ direction).clamp(min=0)[:, None] * direction
    return torch.stack(found) if found else written.new_zeros(0, width)


def shared_direction(
    tokens: Float[Tensor, "token coordinate"], noise: float
) -> tuple[Float[Tensor, " coordinate"], Bool[Tensor, " token"]]:
    """The direction in which most tokens point up to the noise, and which tokens these are."""
    limit, sizes = _noise_limit(noise, tokens.shape[1]), tokens.norm(dim=1).clamp(min=1e-12)
    along = tokens @ (tokens / sizes[:, None]).T
    # The token that gives the direction has noise as well, the more the smaller it is.
    limits = limit * (1 + (sizes[:, None] / sizes).square())
    near = (sizes.square()[:, None] - along.square() <= limits) & (along > 0)
    first = int(near.sum(dim=0).argmax())
    direction = tokens[first] / sizes[first]
    shared = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(_REFINEMENTS):
        shared = _shares(tokens, direction, limit)
        direction = normalize(tokens[shared].sum(dim=0), dim=0)
    return direction, shared


def _shares(tokens: Tensor, direction: Tensor, limit: float) -> Bool[Tensor, " token"]:
    size = tokens @ direction
    return ((tokens - size[:, None] * direction).square().sum(dim=1) <= limit) & (size > 0)


def _noise_limit(noise: float, width: int) -> float:
    """Squared distance from a line that noise seldom exceeds: sqrt(width - 1) and one standard deviation more."""
    return noise**2 * (max(width - 1, 1) ** 0.5 + 1) ** 2
