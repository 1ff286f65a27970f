"""The gate that a contrast must pass: fine-tuning changes it more than splits of the other prompts."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lens_crosscoder.activations.contrast_rows import ContrastRows
from sae_lens_crosscoder.stacking import StackedLayout

N_SPLITS = 39
"""Splits of the negative prompts; the least p-value is 1 / 40."""
P_LIMIT = 0.05
LEAST_TIMES = 2.0
"""A contrast must change at least this many times as much as activations change in general. Tokens that are unusual for
both models, such as an answer that neither gives, change a little more than splits of usual ones in any fine-tune."""
_LEAST_SPLITS = 19
_UPPER = 0.3
_MOST_ROWS = 600


@dataclass(frozen=True)
class Gate:
    """Size of the change along a contrast, against the same for splits that do not matter."""

    ratio: float
    """`|Dmu^delta| / |Dmu^base|`: the difference of the groups in chat - base, relative to that in the base model."""
    control_ratios: tuple[float, ...]
    """The same for splits of the negative prompts along principal directions of the base model."""
    size: float
    """Median size of chat - base relative to base, by which any pair of groups changes."""

    @property
    def times(self) -> float:
        """The ratio in units of the size."""
        return self.ratio / self.size

    @property
    def p_value(self) -> float:
        """Rank of the ratio among the controls: the share at least as large, counting itself."""
        return (1 + sum(control >= self.ratio for control in self.control_ratios)) / (1 + len(self.control_ratios))

    @property
    def is_passed(self) -> bool:
        """True for a p of at most 0.05 and a change at least twice as large as that of activations in general."""
        return self.p_value <= P_LIMIT and self.times >= LEAST_TIMES


def gate(contrast: ContrastRows, layout: StackedLayout, size: float, n_splits: int = N_SPLITS) -> Gate:
    """Compare a contrast with splits of its negative prompts, on the part that is not held out.

    A map that turns every activation, as a change without an aim does, moves the difference of any two groups in
    proportion to that difference. A real fine-tune also does something everywhere, and not equally in all directions:
    the splits show how much.

    Args:
        size: median size of chat - base relative to base, see `size_of_difference`.

    Raises:
        ValueError: for too few negative prompts.
    """
    validate_enough_splits(contrast, layout)
    positive, negative = (rows.double() for rows in contrast.part(held_out=False))
    return Gate(
        relative_change(positive, negative, layout),
        tuple(relative_change(*split, layout) for split in control_splits(negative, layout, n_splits)),
        size,
    )


def relative_change(first: Float[Tensor, "_ d_in"], second: Float[Tensor, "_ d_in"], layout: StackedLayout) -> float:
    """`|Dmu^delta| / |Dmu^base|` between two groups of rows."""
    base, chat = layout.split(first.mean(dim=0) - second.mean(dim=0))
    return float((chat - base).norm() / base.norm())


def control_splits(
    rows: Float[Tensor, "row d_in"], layout: StackedLayout, n_splits: int = N_SPLITS
) -> list[tuple[Float[Tensor, "_ d_in"], Float[Tensor, "_ d_in"]]]:
    """Splits of rows by the base model alone: along its leading principal directions, the upper 30 % and the rest."""
    if len(rows) > _MOST_ROWS:
        rows = rows[torch.linspace(0, len(rows) - 1, _MOST_ROWS).round().long()]
    base = layout.split(rows)[0].double()
    centred = base - base.mean(dim=0)
    directions = torch.linalg.svd(centred, full_matrices=False).Vh[: min(n_splits, len(rows) - 1)]
    # The sign of a principal direction is arbitrary, and the two parts are of unequal size.
    directions = directions * directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    splits: list[tuple[Tensor, Tensor]] = []
    for along in (centred @ directions.T).unbind(dim=1):
        is_upper = along > along.quantile(1 - _UPPER)
        splits.append((rows[is_upper], rows[~is_upper]))
    return splits


def validate_enough_splits(contrast: ContrastRows, layout: StackedLayout) -> None:
    """Raise a ValueError for so few negative prompts that no p-value can be small."""
    n_negative = int((~contrast.positive & ~contrast.held_out).sum())
    n_splits = min(n_negative - 1, layout.d_models[0])
    if n_splits < _LEAST_SPLITS:
        raise ValueError(
            f"Contrast {contrast.name!r} allows {n_splits} control splits, but needs {_LEAST_SPLITS} for a p-value of "
            f"{P_LIMIT}. Pass at least {2 * _LEAST_SPLITS + 2} negative prompts, half of which are held out (now "
            f"{n_negative} are not), and models at least {_LEAST_SPLITS} wide."
        )
