"""Rows of activations as they lie in a cache's files: numbers as they are, or bytes with a scale per row and source."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

CacheDtype = Literal["bfloat16", "float32", "int8"]
DTYPES: dict[CacheDtype, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "int8": torch.uint8,  # of the bytes of int8 numbers and their scales
}
_SCALE = torch.bfloat16
_MOST = 127


class Int8Rows:
    """Rows of bytes, read as float32.

    Args:
        stored: for each source of the model its numbers, then its scale.
        widths: of these sources.
    """

    def __init__(self, stored: UInt8[Tensor, "token bytes"], widths: tuple[int, ...]) -> None:
        self.stored, self.widths = stored, widths

    def __len__(self) -> int:
        return len(self.stored)

    def __getitem__(self, rows: slice, /) -> Float[Tensor, "token d_model"]:
        stored, parts = self.stored[rows], list[Tensor]()
        first = 0
        for width in self.widths:
            last = first + width
            scale = stored[:, last : last + _SCALE.itemsize].contiguous().view(_SCALE)
            parts.append(stored[:, first:last].view(torch.int8).float().mul_(scale))
            first = last + _SCALE.itemsize
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


def validate_dtype(dtype: str) -> None:
    """Raise a ValueError for a precision that a cache cannot have."""
    if dtype not in DTYPES:
        raise ValueError(
            f"dtype={dtype!r} is not one of {tuple(DTYPES)}: float16 overflows on residual streams, and fewer than "
            "8 bits lose too much of them."
        )


Rows = Tensor | Int8Rows
"""One model's rows, which are read from disk where they are indexed by a slice."""


def rows_of_blocks(rows: Rows, blocks: Sequence[slice]) -> Float[Tensor, "token d_model"]:
    """Read several slices of rows, one after the other; faster than each alone.

    >>> rows_of_blocks(torch.arange(6.0).view(6, 1), [slice(4, 6), slice(0, 1)]).flatten()
    tensor([4., 5., 0.])
    """
    if isinstance(rows, Tensor):
        return torch.cat([rows[block] for block in blocks])
    return Int8Rows(torch.cat([rows.stored[block] for block in blocks]), rows.widths)[:]


def bytes_of_row(widths: tuple[int, ...], dtype: CacheDtype) -> int:
    """Number of bytes of one model's row, with these widths of its sources.

    >>> bytes_of_row((256,), "bfloat16"), bytes_of_row((256,), "int8"), bytes_of_row((8, 8), "int8")
    (512, 258, 20)
    """
    scales = len(widths) * _SCALE.itemsize if dtype == "int8" else 0
    return sum(widths) * DTYPES[dtype].itemsize + scales


def stored_rows(
    rows: Float[Tensor, "token d_model"], widths: tuple[int, ...], dtype: CacheDtype
) -> Float[Tensor, "token d_model"] | UInt8[Tensor, "token bytes"]:
    """Convert activations to what a file holds.

    With int8, a source's numbers are rounded to 127 steps of its row's largest one, on either side of 0:
    `x = q s`, with s rounded up to bfloat16.
    """
    if dtype != "int8":
        return rows.to(DTYPES[dtype])
    return torch.cat([part for source in rows.float().split(list(widths), dim=-1) for part in _quantized(source)], -1)


def _quantized(source: Float[Tensor, "token width"]) -> tuple[UInt8[Tensor, "token width"], UInt8[Tensor, "token 2"]]:
    largest = source.abs().amax(dim=-1, keepdim=True)
    # bfloat16 has 8 significant bits: from this much above, it is rounded to no less than the number itself.
    scale = (largest / _MOST * (1 + 2**-8)).to(_SCALE)
    steps = (source / scale.float().clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-_MOST, _MOST)
    return steps.to(torch.int8).view(torch.uint8), scale.view(torch.uint8)


def load_rows(path: Path, n_tokens: int, widths: tuple[int, ...], dtype: CacheDtype) -> Rows:
    """Map the rows of a file into memory: they are read from disk when they are used."""
    n_numbers = bytes_of_row(widths, dtype) // DTYPES[dtype].itemsize
    stored = torch.from_file(str(path), shared=False, size=n_tokens * n_numbers, dtype=DTYPES[dtype])
    stored = stored.view(n_tokens, n_numbers)
    return Int8Rows(stored, widths) if dtype == "int8" else stored


def frac_lost(rows: Float[Tensor, "token d_model"], widths: tuple[int, ...]) -> float:
    """Compute the share of a usual token's variance that int8 takes; nan without variance.

    Usual means the median over tokens, which tokens that dominate do not change.
    """
    rows = rows.float()
    read = Int8Rows(stored_rows(rows, widths, "int8"), widths)[:]
    lost, spread = ((rows - other).square().sum(dim=-1).median() for other in (read, rows.median(dim=0).values))
    return float(lost / spread) if spread > 0 else float("nan")
