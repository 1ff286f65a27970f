"""Non-negative orthogonal matching pursuit of many tokens at once."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_RIDGE = 1e-5
"""Added to the unit diagonal of the atoms' Gram matrix, which two equal atoms would make singular."""
_BYTES_AT_ONCE = 2**28


class Pursuit(NamedTuple):
    """Sparse codes of tokens over unit atoms."""

    latent: Int[Tensor, "token slot"]
    """Atoms in the order in which they were chosen; entries behind a token's last atom are meaningless."""
    value: Float[Tensor, "token slot"]
    """Coefficients, at least 0; 0 behind a token's last atom."""
    gain: Float[Tensor, "token slot"]
    """Energy that each atom explained when it was chosen, 0 behind the last."""

    @property
    def is_chosen(self) -> Bool[Tensor, "token slot"]:
        return self.gain > 0


@torch.no_grad()
def pursue(
    x: Float[Tensor, "token d_in"],
    units: Float[Tensor, "d_sae d_in"],
    min_gain: float,
    max_atoms: int,
    n_candidates: int,
) -> Pursuit:
    """Explain tokens by few atoms with coefficients of at least 0.

    A token repeatedly takes the atom u that is most correlated with its residual r, and fits all its coefficients
    again by least squares. It stops when <r, u>^2 is `min_gain` or less, when <r, u> is not positive, or after
    `max_atoms`.

    Args:
        x: activations less the bias.
        units: atoms of length 1; rows of zeros are never chosen.
        n_candidates: atoms that a token may choose from, those most correlated with the token itself; as many as
            there are atoms makes the pursuit exact.
    """
    n_candidates, max_atoms = min(n_candidates, len(units)), min(max_atoms, n_candidates, len(units))
    gram = units @ units.T if units.element_size() * len(units) ** 2 <= _gram_bytes(x.device.type) else None
    whole_gram = gram if n_candidates == len(units) else None
    of_candidates = (
        0 if whole_gram is not None else n_candidates * (max_atoms + 2 + (units.shape[1] if gram is None else 1))
    )
    numbers = 3 * len(units) + of_candidates + max_atoms * (max_atoms + 3)
    n_at_once = max(1, _BYTES_AT_ONCE // (numbers * x.element_size()))
    parts: list[Pursuit] = []
    for part in x.split(n_at_once):
        atoms = (
            _Candidates(part, units, gram, n_candidates, max_atoms)
            if whole_gram is None
            else _EveryAtom(part, units, whole_gram)
        )
        parts.append(_pursue_part(part, atoms, min_gain, max_atoms))
    return Pursuit(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _gram_bytes(device_type: str) -> int:
    """Largest Gram matrix of all atoms that is made; atoms beyond are multiplied where they are needed."""
    return 2**31 if device_type == "cpu" else 2**35


class _EveryAtom:
    """Tokens' correlations with all atoms, from the Gram matrix. A place is an atom's id."""

    def __init__(self, x: Tensor, units: Tensor, gram: Tensor) -> None:
        self._gram, self.start = gram, x @ units.T

    def ids(self, rows: Tensor, place: Tensor) -> Int[Tensor, " token"]:
        """The atoms at places."""
        return place

    def take(self, rows: Tensor, slot: int, place: Tensor, latent: Tensor) -> Float[Tensor, "token slot"]:
        """Products of the atoms at places, now chosen in a slot, with those in the slots before."""
        return self._gram[latent[rows, :slot], place[:, None]]

    def explained(self, rows: Tensor, coefficients: Tensor, latent: Tensor) -> Float[Tensor, "token place"]:
        """Correlation of what the chosen atoms write with all atoms."""
        chosen = latent[rows, : coefficients.shape[1]]
        return torch.nn.functional.embedding_bag(chosen, self._gram, per_sample_weights=coefficients, mode="sum")


class _Candidates:
    """Tokens' correlations with the atoms that are most correlated with each. A place is a rank among these."""

    def __init__(self, x: Tensor, units: Tensor, gram: Tensor | None, n_candidates: int, max_atoms: int) -> None:
        self._units, self._gram = units, gram
        self.start, self._candidates = (x @ units.T).topk(n_candidates, dim=1)
        self._products = x.new_zeros(len(x), max_atoms, n_candidates)  # of chosen atoms with candidates

    def ids(self, rows: Tensor, place: Tensor) -> Int[Tensor, " token"]:
        """The atoms at places."""
        return self._candidates[rows, place]

    def take(self, rows: Tensor, slot: int, place: Tensor, latent: Tensor) -> Float[Tensor, "token slot"]:
        """Products of the atoms at places, now chosen in a slot, with those in the slots before."""
        picked, candidates = self._candidates[rows, place], self._candidates[rows]
        if self._gram is None:
            products = torch.einsum("ncd,nd->nc", self._units[candidates], self._units[picked])
        else:
            products = self._gram[picked[:, None], candidates]
        self._products[rows, slot] = products
        return self._products[rows[:, None], torch.arange(slot, device=rows.device), place[:, None]]

    def explained(self, rows: Tensor, coefficients: Tensor, latent: Tensor) -> Float[Tensor, "token place"]:
        """Correlation of what the chosen atoms write with the candidates."""
        products = self._products[rows, : coefficients.shape[1]]
        return (coefficients[:, None] @ products).squeeze(1)


def _pursue_part(x: Tensor, atoms: _EveryAtom | _Candidates, min_gain: float, max_atoms: int) -> Pursuit:
    """Pursue some tokens. Residuals are never formed: their correlations follow from those among the atoms."""
    n = len(x)
    correlation = atoms.start
    latent = torch.zeros(n, max_atoms, dtype=torch.int64, device=x.device)
    value, gain = x.new_zeros(n, max_atoms), x.new_zeros(n, max_atoms)
    factor = torch.eye(max_atoms, dtype=x.dtype, device=x.device).repeat(n, 1, 1)  # Cholesky factor of the chosen ones'
    projection = x.new_zeros(n, max_atoms)
    rows = torch.arange(n, device=x.device)  # tokens that are still going
    for slot in range(max_atoms):
        best, place = correlation.max(dim=1)
        picked = atoms.ids(rows, place)
        is_new = ~(latent[rows, :slot] == picked[:, None]).any(dim=1)
        going = is_new & (best > 0) & (best.square() > min_gain)
        rows, place, picked, best = rows[going], place[going], picked[going], best[going]
        if len(rows) == 0:
            break
        cross = atoms.take(rows, slot, place, latent)
        _add_to_fit(rows, slot, cross, atoms.start[rows, place], factor, projection)
        latent[rows, slot], gain[rows, slot] = picked, best.square()
        solved = torch.linalg.solve_triangular(
            factor[rows, : slot + 1, : slot + 1].mT, projection[rows, : slot + 1, None], upper=True
        )
        coefficients = solved.squeeze(2).clamp(min=0)
        value[rows, : slot + 1] = coefficients
        correlation = atoms.start[rows] - atoms.explained(rows, coefficients, latent)
    return Pursuit(latent, value, gain)


def _add_to_fit(rows: Tensor, slot: int, cross: Tensor, projected: Tensor, factor: Tensor, projection: Tensor) -> None:
    """Extend the Cholesky factors and the projections of tokens by the atom in `slot`, in place.

    Args:
        cross: products of that atom with those chosen before.
        projected: its product with the token.
    """
    diagonal = projected.new_full((len(rows),), 1 + _RIDGE)
    if slot > 0:
        border = torch.linalg.solve_triangular(factor[rows, :slot, :slot], cross[:, :, None], upper=False).squeeze(2)
        factor[rows, slot, :slot] = border
        diagonal = diagonal - border.square().sum(dim=1)
        projected = projected - (border * projection[rows, :slot]).sum(dim=1)
    length = diagonal.clamp(min=_RIDGE).sqrt()
    factor[rows, slot, slot] = length
    projection[rows, slot] = projected / length
