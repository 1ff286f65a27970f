"""What each operation on pairs must do, whichever implementation and device it runs on.

Widths are mostly no powers of two, and sizes no multiples of a block, because that is where masks can be wrong.
"""

import pytest
import torch

from tests.reference import kernels as reference

NAN, INF = float("nan"), float("inf")
BAG_SIZES = {
    "empty bags between full ones": [0, 3, 0, 0, 17, 1, 8, 0],
    "only empty bags": [0, 0, 0],
    "one pair": [1],
    "one bag": [40],
}
WIDTHS = [1, 33, 96, 513, 1100]
N_ROWS, N_COLUMNS = 11, 50
TOLERANCE = {torch.float64: 1e-13, torch.float32: 3e-6, torch.bfloat16: 2**-7}
BOUNDS = {
    "negative": lambda n: -torch.rand(n),
    "zero": torch.zeros,
    "positive": torch.rand,
    "infinite": lambda n: torch.full((n,), INF),
    "minus infinity": lambda n: torch.full((n,), -INF),
    "0 / 0": lambda n: torch.zeros(n) / torch.zeros(n),
    "of all kinds": lambda n: torch.tensor([0.5, -0.5, 0.0, INF, -INF, NAN]).repeat(n // 6 + 1)[:n],
}

each_width = pytest.mark.parametrize("width", WIDTHS)
each_bag_sizes = pytest.mark.parametrize("sizes", BAG_SIZES.values(), ids=BAG_SIZES)
each_kind_of_bounds = pytest.mark.parametrize("bounds", BOUNDS.values(), ids=BOUNDS)
each_tile_shape = pytest.mark.parametrize("shape", [(1, 1), (7, 33), (3, 96), (2, 513), (3, 5000), (0, 5)], ids=str)


def starts_of(sizes):
    return torch.tensor([0, *sizes]).cumsum(0)[:-1]


def close(found, expected, dtype):
    """Equal up to the rounding of about a thousand terms of size 1, and of the result's type."""
    assert found.dtype == dtype
    tolerance = TOLERANCE[dtype]
    expected = torch.tensor(expected, dtype=torch.float64).reshape(found.shape)
    torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=10 * tolerance, equal_nan=True)
    return True


def gather_sum_sums_as_a_loop_does(gather_sum, width, sizes, dtype, device="cpu"):
    """Rows in no order and more pairs than rows, so that some come twice."""
    table, weights = torch.randn(N_ROWS, width).to(dtype), torch.randn(sum(sizes)).to(dtype)
    index, starts = torch.randint(N_ROWS, (sum(sizes),)), starts_of(sizes)
    sums = gather_sum(table.to(device), index.to(device), starts.to(device), weights.to(device))
    expected = reference.gather_sum(table.tolist(), index.tolist(), starts.tolist(), weights.tolist())
    return close(sums, expected, dtype)


def gather_sum_reads_only_its_rows(gather_sum, device="cpu"):
    """nan and infinity stay in the bags that hold them."""
    table = torch.tensor([[1.0, 2.0], [NAN, 3.0], [INF, -INF]], device=device)
    index, starts = torch.tensor([0, 1, 0, 2, 2], device=device), torch.tensor([0, 1, 2, 4, 4], device=device)
    sums = gather_sum(table, index, starts, torch.tensor([2.0, 1.0, 1.0, 1.0, -1.0], device=device))
    return close(sums, [[2, 4], [NAN, 3], [INF, -INF], [0, 0], [-INF, INF]], torch.float32)


def gather_sum_takes_views(gather_sum, device="cpu"):
    """A transposed table, and weights that are one number repeated."""
    table, weights = torch.randn(33, N_ROWS).T, torch.tensor(1.5).expand(9)
    index, starts = torch.randint(N_ROWS, (18,))[::2], starts_of([4, 5])
    sums = gather_sum(table.to(device), index.to(device), starts.to(device), weights.to(device))
    expected = reference.gather_sum(table.tolist(), index.tolist(), starts.tolist(), weights.tolist())
    return close(sums, expected, torch.float32)


def gather_dot_multiplies_as_a_loop_does(gather_dot, width, sizes, dtype, device="cpu"):
    """Row i has `sizes[i]` pairs; columns come in no order, and some twice."""
    rows, table = torch.randn(len(sizes), width).to(dtype), torch.randn(N_COLUMNS, width).to(dtype)
    row = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    column = torch.randint(N_COLUMNS, (sum(sizes),))
    dots = gather_dot(rows.to(device), table.to(device), row.to(device), column.to(device))
    expected = reference.gather_dot(rows.tolist(), table.tolist(), row.tolist(), column.tolist())
    return close(dots, expected, dtype)


def gather_dot_takes_views(gather_dot, device="cpu"):
    rows, table = torch.randn(33, 3).T, torch.randn(33, N_ROWS).T
    row, column = torch.tensor([0, 0, 1, 2]), torch.tensor([9, 4, 4, 10])
    dots = gather_dot(rows.to(device), table.to(device), row.to(device), column.to(device))
    expected = reference.gather_dot(rows.tolist(), table.tolist(), row.tolist(), column.tolist())
    return close(dots, expected, torch.float32)


def indices_above_finds_what_a_loop_finds(indices_above, shape, bounds, dtype, device="cpu"):
    """Entries include nan, both infinities and some that equal their bound, which do not exceed it."""
    tile, limits = torch.randn(shape).to(dtype), bounds(shape[1]).to(dtype)
    tile = torch.where(torch.rand(shape) < 0.2, limits, tile)
    for special in (NAN, INF, -INF):
        tile[torch.rand(shape) < 0.1] = special
    found = indices_above(tile.to(device), limits.to(device))
    assert found.dtype == torch.int64
    assert found.tolist() == reference.indices_above(tile.tolist(), limits.tolist())
    return True


def indices_above_takes_0_where_no_bounds_are_given(indices_above, shape, dtype, device="cpu"):
    tile = torch.randn(shape).to(dtype)
    for special in (0.0, -0.0, INF, -INF):
        tile[torch.rand(shape) < 0.1] = special
    assert indices_above(tile.to(device)).tolist() == reference.indices_above(tile.tolist(), [0.0] * shape[1])
    return True
