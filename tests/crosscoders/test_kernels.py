"""The operations on pairs, in PyTorch, against loops."""

import pytest
import torch

from sae_lens_crosscoder.crosscoders.sparse_step import kernels
from tests.crosscoders import kernel_laws as laws
from tests.reference import kernels as reference


@laws.each_width
@laws.each_bag_sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_gather_sum_sums_as_a_loop_does(width, sizes, dtype):
    assert laws.gather_sum_sums_as_a_loop_does(kernels.gather_sum, width, sizes, dtype)


def test_gather_sum_reads_only_its_rows():
    assert laws.gather_sum_reads_only_its_rows(kernels.gather_sum)


@laws.each_width
@laws.each_bag_sizes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gather_dot_multiplies_as_a_loop_does(width, sizes, dtype):
    assert laws.gather_dot_multiplies_as_a_loop_does(kernels.gather_dot, width, sizes, dtype)


def test_views_are_taken_as_they_are():
    assert laws.gather_sum_takes_views(kernels.gather_sum)
    assert laws.gather_dot_takes_views(kernels.gather_dot)


@laws.each_tile_shape
@laws.each_kind_of_bounds
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_indices_above_finds_what_a_loop_finds(shape, bounds, dtype):
    assert laws.indices_above_finds_what_a_loop_finds(kernels.indices_above, shape, bounds, dtype)


@laws.each_tile_shape
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_indices_above_takes_0_where_no_bounds_are_given(shape, dtype):
    assert laws.indices_above_takes_0_where_no_bounds_are_given(kernels.indices_above, shape, dtype)


@pytest.mark.parametrize("n", [9, 12])
@pytest.mark.parametrize("index", [[], [0], [2, 0, 0], [1, 3, 1, 1], [8, 5]], ids=str)
def test_run_starts_counts_what_comes_before(index, n):
    starts = kernels.run_starts(torch.tensor(index, dtype=torch.int64), n)
    assert starts.tolist() == reference.run_starts(index, n)


def test_sums_carry_no_gradient():
    table, pairs = torch.randn(3, 2, requires_grad=True), torch.tensor([0, 2])
    assert not kernels.gather_sum(table, pairs, torch.tensor([0]), torch.ones(2, requires_grad=True)).requires_grad


def test_a_cpu_has_no_triton():
    assert not kernels.uses_triton(torch.zeros(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("values", [[3.0, 1.0, 3.0, 2.0, 3.0, 0.0], [0.0] * 6, [5.0, 4.0, 3.0, 2.0, 1.0, 0.0]])
def test_the_largest_are_n_whatever_is_equal_among_them(values, dtype):
    for n in range(8):
        found = kernels.largest(torch.tensor(values, dtype=dtype), n)
        assert sorted((values[i] for i in found), reverse=True) == sorted(values, reverse=True)[:n]
        assert found.tolist() == sorted(set(found.tolist()))


def test_a_norm_is_that_of_all_numbers_as_they_lie():
    rows = torch.randn(7, 4, generator=torch.Generator().manual_seed(0))
    tensors = [rows.T, rows, rows[:, 1], rows[::2, ::2], torch.zeros(0)]
    expected = sum(float(number) ** 2 for tensor in tensors for number in tensor.flatten()) ** 0.5
    assert kernels.norm_of(tensors).item() == pytest.approx(expected, rel=1e-6)
    assert kernels.norm_of([tensor.bfloat16() for tensor in tensors]).item() == pytest.approx(expected, rel=1e-2)
