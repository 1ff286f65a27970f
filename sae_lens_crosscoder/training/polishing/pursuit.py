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
    width = units.shape[1]
    numbers = (n_candidates * width if n_candidates < len(units) else len(units)) + max_atoms * (width + max_atoms)
    n_at_once = max(1, _BYTES_AT_ONCE // (numbers * x.element_size()))
    parts = [_pursue_part(part, units, min_gain, max_atoms, n_candidates) for part in x.split(n_at_once)]
    return Pursuit(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def _pursue_part(x: Tensor, units: Tensor, min_gain: float, max_atoms: int, n_candidates: int) -> Pursuit:
    n, among_all = len(x), n_candidates == len(units)
    candidates = None if among_all else (x @ units.T).topk(n_candidates, dim=1).indices
    atoms = units if candidates is None else units[candidates]
    latent = torch.zeros(n, max_atoms, dtype=torch.int64, device=x.device)
    value, gain = x.new_zeros(n, max_atoms), x.new_zeros(n, max_atoms)
    chosen = x.new_zeros(n, max_atoms, x.shape[1])
    factor = torch.eye(max_atoms, dtype=x.dtype, device=x.device).repeat(n, 1, 1)  # Cholesky factor of the Gram matrix
    projection = x.new_zeros(n, max_atoms)
    residual, going = x.clone(), torch.ones(n, dtype=torch.bool, device=x.device)
    for slot in range(max_atoms):
        correlation = residual @ atoms.T if among_all else torch.einsum("ncd,nd->nc", atoms, residual)
        best, place = correlation.max(dim=1)
        picked = place if candidates is None else candidates.gather(1, place[:, None]).squeeze(1)
        is_new = ~((latent[:, :slot] == picked[:, None]) & (gain[:, :slot] > 0)).any(dim=1)
        going = going & is_new & (best > 0) & (best.square() > min_gain)
        rows = going.nonzero().squeeze(1)
        if len(rows) == 0:
            break
        latent[rows, slot], gain[rows, slot] = picked[rows], best[rows].square()
        chosen[rows, slot] = units[picked[rows]]
        _add_to_fit(rows, slot, chosen, x, factor, projection)
        solved = torch.linalg.solve_triangular(
            factor[rows, : slot + 1, : slot + 1].mT, projection[rows, : slot + 1, None], upper=True
        )
        value[rows, : slot + 1] = solved.squeeze(2).clamp(min=0)
        residual[rows] = x[rows] - torch.einsum("ns,nsd->nd", value[rows, : slot + 1], chosen[rows, : slot + 1])
    return Pursuit(latent, value, gain)


def _add_to_fit(rows: Tensor, slot: int, chosen: Tensor, x: Tensor, factor: Tensor, projection: Tensor) -> None:
    """Extend the Cholesky factors and the projections of tokens by the atom in `slot`, in place."""
    new = chosen[rows, slot]
    projected = torch.einsum("nd,nd->n", new, x[rows])
    diagonal = x.new_full((len(rows),), 1 + _RIDGE)
    if slot > 0:
        gram = torch.einsum("nsd,nd->ns", chosen[rows, :slot], new)
        border = torch.linalg.solve_triangular(factor[rows, :slot, :slot], gram[:, :, None], upper=False).squeeze(2)
        factor[rows, slot, :slot] = border
        diagonal = diagonal - border.square().sum(dim=1)
        projected = projected - (border * projection[rows, :slot]).sum(dim=1)
    length = diagonal.clamp(min=_RIDGE).sqrt()
    factor[rows, slot, slot] = length
    projection[rows, slot] = projected / length
