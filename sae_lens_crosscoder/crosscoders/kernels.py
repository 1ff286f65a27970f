"""The few operations on pairs of token and latent that a sparse training step is made of."""

import warnings

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag


def gather_sum(
    table: Float[Tensor, "row width"],
    index: Int[Tensor, " pairs"],
    starts: Int[Tensor, " bags"],
    weights: Float[Tensor, " pairs"],
) -> Float[Tensor, "bags width"]:
    """Weighted sums of rows: bag b sums `weights[p] * table[index[p]]` from `starts[b]` to the next bag's start.

    >>> table = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> gather_sum(table, torch.tensor([0, 1, 1]), torch.tensor([0, 2, 2]), torch.tensor([5.0, 6.0, 7.0]))
    tensor([[5., 6.],
            [0., 0.],
            [0., 7.]])
    """
    return embedding_bag(index, table, starts, mode="sum", per_sample_weights=weights)


def gather_dot(
    rows: Float[Tensor, "row width"],
    table: Float[Tensor, "column width"],
    row: Int[Tensor, " pairs"],
    column: Int[Tensor, " pairs"],
) -> Float[Tensor, " pairs"]:
    """`<rows[row[p]], table[column[p]]>` for pairs sorted by row.

    >>> rows, table = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    >>> gather_dot(rows, table, torch.tensor([0, 0]), torch.tensor([0, 1]))
    tensor([1., 3.])
    """
    starts = run_starts(row, len(rows) + 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        pattern = torch.sparse_csr_tensor(
            starts, column, rows.new_zeros(len(row)), size=(len(rows), len(table)), check_invariants=False
        )
        return torch.sparse.sampled_addmm(pattern, rows, table.T, beta=0.0).values()


def indices_above(tile: Float[Tensor, "row column"], bounds: Float[Tensor, " column"]) -> Int[Tensor, " found"]:
    """Flat indices of the entries that exceed their column's bound, ascending.

    >>> indices_above(torch.tensor([[1.0, 5.0], [3.0, 4.0]]), torch.tensor([2.0, 4.0]))
    tensor([1, 2])
    """
    if tile.device.type == "cpu":  # where numpy's search is five times torch's
        return torch.from_numpy(np.flatnonzero(tile.numpy() > bounds.numpy()))
    return (tile > bounds).view(-1).nonzero().squeeze(-1)


def run_starts(ascending: Int[Tensor, " pairs"], n: int) -> Int[Tensor, " n"]:
    """Where the runs of 0, 1, ..., n - 1 begin, empty ones included.

    >>> run_starts(torch.tensor([0, 0, 2]), 4)
    tensor([0, 2, 2, 3])
    """
    return torch.searchsorted(ascending, torch.arange(n, device=ascending.device))
