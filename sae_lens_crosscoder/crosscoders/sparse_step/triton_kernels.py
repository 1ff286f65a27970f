"""The operations of `kernels.py` on a GPU, for which see there; each is one pass over what it reads.

All accumulate in float32, or in float64 for float64 tables. Offsets are 64 bits wide, since a million latents times
a stacked width of 4,608 exceed 2^31 numbers.

The block sizes are chosen, not searched for: searching would time every variant when training starts, and again for
every new width. A thread loads 16 bytes at once, and a program has enough loads under way to hide the memory's latency
at the paper's scale, where bags of about 100 rows make reconstructions and bags of about 3 make weight gradients.
"""
# Triton, which only GPU builds of PyTorch bring, may be missing where types are checked, and mistypes its launches.
# pyright: basic, reportMissingImports=false, reportCallIssue=false, reportIndexIssue=false, reportArgumentType=false

from typing import no_type_check

import torch
import triton
import triton.language as tl
from jaxtyping import Float, Int
from torch import Tensor

# 512 divides 4,608, the width of a pair of models with 2,304 dimensions: no thread idles.
_WIDTH = tl.constexpr(512)
# A bag can hold all of a batch's tokens: eight rows at a time keep it from outlasting the rest of the grid.
_ROWS = tl.constexpr(8)
_PAIRS = tl.constexpr(4)
# 4,096 divides 73,728, the paper's number of latents.
_COLUMNS = tl.constexpr(4096)


def gather_sum(
    table: Float[Tensor, "row width"],
    index: Int[Tensor, " pairs"],
    starts: Int[Tensor, " bags"],
    weights: Float[Tensor, " pairs"],
) -> Float[Tensor, "bags width"]:
    """Weighted sums of rows, in the table's type; empty bags are written as zeros."""
    n_bags, width = len(starts), table.shape[1]
    sums = table.new_empty(n_bags, width)
    bags = (starts.contiguous(), index.contiguous(), weights.contiguous())
    with torch.cuda.device_of(table):
        _gather_sum[n_bags, triton.cdiv(width, _WIDTH.value)](
            table, *table.stride(), *bags, sums, n_bags, len(index), width, num_warps=4
        )
    return sums


def gather_dot(
    rows: Float[Tensor, "row width"],
    table: Float[Tensor, "column width"],
    row: Int[Tensor, " pairs"],
    column: Int[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """Products of chosen rows, in the rows' type; sorted pairs find theirs in the cache."""
    dots = rows.new_empty(len(row))
    with torch.cuda.device_of(rows):
        _gather_dot[(triton.cdiv(len(row), _PAIRS.value),)](
            rows,
            *rows.stride(),
            table,
            *table.stride(),
            row.contiguous(),
            column.contiguous(),
            dots,
            len(row),
            rows.shape[1],
            num_warps=4,
        )
    return dots


def indices_above(
    tile: Float[Tensor, "row column"], bounds: Float[Tensor, " column"] | None = None
) -> Int[Tensor, " found"]:
    """Flat indices of what exceeds its column's bound, or 0: counted per block, then written where the counts say.

    Neither pass leaves more than a count per block. The host waits once, for the length of the result.
    """
    tile, n_columns = tile.contiguous(), tile.shape[1]
    bounds = None if bounds is None else bounds.contiguous()
    grid = (len(tile) * triton.cdiv(n_columns, _COLUMNS.value),)
    counts = torch.empty(grid, dtype=torch.int64, device=tile.device)
    with torch.cuda.device_of(tile):
        _count_above[grid](tile, bounds, n_columns, counts, num_warps=8)
        ends = counts.cumsum(0)
        found = torch.empty(int(counts.sum()), dtype=torch.int64, device=tile.device)
        _write_above[grid](tile, bounds, n_columns, counts, ends, found, num_warps=8)
    return found


@triton.jit
@no_type_check
def _wide(values):
    """The same numbers in the type that sums and comparisons are made in."""
    return values.to(tl.float64 if values.dtype == tl.float64 else tl.float32)


@triton.jit(do_not_specialize=["n_pairs"])
@no_type_check
def _gather_sum(table, row_stride, column_step, starts, index, weights, sums, n_bags, n_pairs, width):
    """One program per bag and block of columns, bags first: programs of one moment share a part of the table."""
    bag = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1).to(tl.int64) * _WIDTH + tl.arange(0, _WIDTH)
    is_column = columns < width
    end = tl.load(starts + bag + 1, mask=bag + 1 < n_bags, other=n_pairs)
    total = _wide(tl.zeros([_WIDTH], dtype=table.dtype.element_ty))
    for first in range(tl.load(starts + bag), end, _ROWS):
        pairs = first + tl.arange(0, _ROWS)
        is_pair = pairs < end
        row = tl.load(index + pairs, mask=is_pair, other=0).to(tl.int64)
        weight = tl.load(weights + pairs, mask=is_pair, other=0.0)
        at = row[:, None] * row_stride + columns[None, :] * column_step
        part = tl.load(table + at, mask=is_pair[:, None] & is_column[None, :], other=0.0)
        total += tl.sum(_wide(part) * _wide(weight)[:, None], axis=0)
    tl.store(sums + bag * width + columns, total, mask=is_column)


@triton.jit(do_not_specialize=["n_pairs"])
@no_type_check
def _gather_dot(rows, row_stride, row_step, table, table_stride, table_step, row, column, dots, n_pairs, width):
    """One program for a few pairs, over all columns."""
    pairs = tl.program_id(0).to(tl.int64) * _PAIRS + tl.arange(0, _PAIRS)
    is_pair = pairs < n_pairs
    left = tl.load(row + pairs, mask=is_pair, other=0).to(tl.int64)[:, None] * row_stride
    right = tl.load(column + pairs, mask=is_pair, other=0).to(tl.int64)[:, None] * table_stride
    total = _wide(tl.zeros([_PAIRS, _WIDTH], dtype=table.dtype.element_ty))
    for first in range(0, width, _WIDTH):
        columns = (first + tl.arange(0, _WIDTH)).to(tl.int64)[None, :]
        mask = is_pair[:, None] & (columns < width)
        a = tl.load(rows + left + columns * row_step, mask=mask, other=0.0)
        b = tl.load(table + right + columns * table_step, mask=mask, other=0.0)
        total += _wide(a) * _wide(b)
    tl.store(dots + pairs, tl.sum(total, axis=1), mask=is_pair)


@triton.jit
@no_type_check
def _above(tile, bounds, n_columns):
    """This program's part of a row: flat indices, and whether the entries there exceed their bounds."""
    n_blocks = tl.cdiv(n_columns, _COLUMNS)
    row = (tl.program_id(0) // n_blocks).to(tl.int64)
    columns = tl.program_id(0) % n_blocks * _COLUMNS + tl.arange(0, _COLUMNS)
    is_column = columns < n_columns
    at = row * n_columns + columns
    entries = tl.load(tile + at, mask=is_column, other=0.0)
    limits = 0.0
    if bounds is not None:
        limits = tl.load(bounds + columns, mask=is_column, other=float("inf"))
    return at, _wide(entries) > limits


@triton.jit
@no_type_check
def _count_above(tile, bounds, n_columns, counts):
    _, above = _above(tile, bounds, n_columns)
    tl.store(counts + tl.program_id(0), tl.sum(above.to(tl.int32), axis=0))


@triton.jit
@no_type_check
def _write_above(tile, bounds, n_columns, counts, ends, found):
    program = tl.program_id(0)
    count = tl.load(counts + program)
    if count > 0:
        at, above = _above(tile, bounds, n_columns)
        place = tl.load(ends + program) - count + tl.cumsum(above.to(tl.int32), axis=0) - 1
        tl.store(found + place, at, mask=above)
