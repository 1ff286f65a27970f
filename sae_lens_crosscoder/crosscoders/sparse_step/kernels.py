"""The few operations on pairs of token and latent that a sparse training step is made of; none has a gradient.

On a GPU those that read much run as Triton kernels (`triton_kernels.py`), everywhere else as PyTorch's own.
"""

import warnings
from collections.abc import Iterable
from functools import cache
from importlib.util import find_spec

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag
from torch.nn.utils import get_total_norm


def uses_triton(tensor: Tensor) -> bool:
    """True if operations on this tensor run as Triton kernels, which GPU builds of PyTorch include."""
    return tensor.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


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
    if uses_triton(table):
        from sae_lens_crosscoder.crosscoders.sparse_step import triton_kernels

        return triton_kernels.gather_sum(table, index, starts, weights)
    # Detached, because with gradient it would also make what only its own backward pass needs.
    return embedding_bag(index, table.detach(), starts, mode="sum", per_sample_weights=weights.detach())


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
    if uses_triton(table):
        from sae_lens_crosscoder.crosscoders.sparse_step import triton_kernels

        return triton_kernels.gather_dot(rows, table, row, column)
    _announce_sparse_csr()
    dtype = torch.promote_types(table.dtype, torch.float32)  # torch has no such product in half precision on a CPU
    rows, table_wide = rows.to(dtype), table.to(dtype)
    starts = run_starts(row, len(rows) + 1)
    pattern = torch.sparse_csr_tensor(
        starts, column, rows.new_zeros(len(row)), size=(len(rows), len(table)), check_invariants=False
    )
    return torch.sparse.sampled_addmm(pattern, rows, table_wide.T, beta=0.0).values().to(table.dtype)


@cache
def _announce_sparse_csr() -> None:
    """Use up torch's one warning that this layout is in beta."""
    nothing = torch.tensor([0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(nothing, nothing[:0], torch.zeros(0), size=(0, 0), check_invariants=False)


def indices_above(
    tile: Float[Tensor, "row column"], bounds: Float[Tensor, " column"] | None = None
) -> Int[Tensor, " found"]:
    """Flat indices, ascending, of the entries that exceed their column's bound, or 0.

    >>> indices_above(torch.tensor([[1.0, 5.0], [3.0, 4.0]]), torch.tensor([2.0, 4.0]))
    tensor([1, 2])
    """
    if uses_triton(tile):
        from sae_lens_crosscoder.crosscoders.sparse_step import triton_kernels

        return triton_kernels.indices_above(tile, bounds)
    is_bfloat16 = tile.dtype == torch.bfloat16
    if tile.device.type != "cpu" or (is_bfloat16 and bounds is not None):
        return indices_of((tile > (0 if bounds is None else bounds)).view(-1))
    # numpy compares faster than torch. It has no bfloat16, but the bits of a positive one are a positive integer's.
    numbers = tile.view(torch.int16) if is_bfloat16 else tile
    above = numbers.numpy() > (0 if bounds is None else bounds.numpy())
    return indices_of(torch.from_numpy(above).view(-1))


def indices_of(mask: Bool[Tensor, " entries"]) -> Int[Tensor, " found"]:
    """Indices of a mask's true entries, ascending."""
    if mask.device.type != "cpu":
        return mask.nonzero().squeeze(-1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))  # several times as fast as torch


def largest(values: Float[Tensor, " entries"], n: int) -> Int[Tensor, " found"]:
    """Indices of the n largest values, ascending; all indices if there are at most n.

    >>> largest(torch.tensor([5.0, 1.0, 7.0, 6.0]), 2)
    tensor([2, 3])
    """
    if len(values) <= n:
        return torch.arange(len(values), device=values.device)
    if values.device.type != "cpu":
        return values.topk(n, sorted=False).indices.sort().values
    if n == 0:
        return torch.zeros(0, dtype=torch.int64)
    if values.dtype == torch.bfloat16:  # which numpy does not have
        values = values.float()
    numbers = values.numpy()
    smallest = np.partition(numbers, len(numbers) - n)[len(numbers) - n]  # several times as fast as torch
    found = np.flatnonzero(numbers >= smallest)
    surplus = len(found) - n  # of equal values
    if surplus > 0:
        found = np.setdiff1d(found, np.flatnonzero(numbers == smallest)[-surplus:], assume_unique=True)
    return torch.from_numpy(found)


def stable_order(index: Int[Tensor, " pairs"], n: int) -> Int[Tensor, " pairs"]:
    """The order that sorts indices below n, equal ones as they come.

    >>> stable_order(torch.tensor([2, 0, 2, 1]), 3)
    tensor([1, 3, 0, 2])
    """
    if index.device.type == "cpu" and n <= 2**16:  # for which numpy has a radix sort
        return torch.from_numpy(np.argsort(index.numpy().astype(np.uint16), kind="stable"))
    return index.sort(stable=True).indices


def run_starts(index: Int[Tensor, " pairs"], n: int) -> Int[Tensor, " n"]:
    """Start of each value's run, for 0, 1, ..., n - 1 in a sorted list, empty runs included.

    >>> run_starts(torch.tensor([0, 2, 0]), 4)
    tensor([0, 2, 2, 3])
    """
    n_each = counts(index, n)
    return n_each.cumsum(dim=0) - n_each


def norm_of(tensors: Iterable[Float[Tensor, "..."]]) -> Float[Tensor, ""]:
    """Euclidean norm of all numbers of some tensors together.

    >>> norm_of([torch.tensor([2.0, 3.0]), torch.tensor([[6.0]])])
    tensor(7.)
    """
    parts = [tensor.mT if tensor.ndim == 2 and not tensor.is_contiguous() else tensor for tensor in tensors]
    if not all(part.device.type == "cpu" and part.is_contiguous() and part.dtype.itemsize >= 4 for part in parts):
        return get_total_norm(parts)
    # A product of a vector with itself reads memory several times as fast as torch's norm, and sums more exactly.
    return torch.stack([torch.dot(part.view(-1), part.view(-1)) for part in parts]).sum().sqrt()


def counts(index: Int[Tensor, " pairs"], n: int) -> Int[Tensor, " n"]:
    """Count each of 0, 1, ..., n - 1; unlike `torch.bincount`, without waiting for a GPU.

    >>> counts(torch.tensor([0, 2, 0]), 4)
    tensor([2, 0, 1, 0])
    """
    if index.device.type == "cpu":
        return torch.from_numpy(np.bincount(index.numpy(), minlength=n))
    return index.new_zeros(n).index_add_(0, index, torch.ones_like(index))
