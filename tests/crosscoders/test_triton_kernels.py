"""The operations on pairs, in Triton, against loops.

They run on a GPU, or anywhere with TRITON_INTERPRET=1; that they compile for Hopper GPUs needs neither.
"""

import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="Triton comes with PyTorch's GPU builds.")

from sae_lens_crosscoder.crosscoders.sparse_step import kernels, triton_kernels
from tests.crosscoders import kernel_laws as laws

IS_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if IS_INTERPRETED else "cuda"
runs = pytest.mark.skipif(
    not (IS_INTERPRETED or torch.cuda.is_available()), reason="Neither a GPU nor TRITON_INTERPRET=1."
)
runs_on_a_gpu = pytest.mark.skipif(IS_INTERPRETED or not torch.cuda.is_available(), reason="No GPU.")
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


@runs
@laws.each_width
@laws.each_bag_sizes
@each_dtype
def test_gather_sum_sums_as_a_loop_does(width, sizes, dtype):
    assert laws.gather_sum_sums_as_a_loop_does(triton_kernels.gather_sum, width, sizes, dtype, DEVICE)


@runs
def test_gather_sum_reads_only_its_rows():
    assert laws.gather_sum_reads_only_its_rows(triton_kernels.gather_sum, DEVICE)


@runs
def test_bfloat16_is_summed_in_float32():
    n = 1000  # of 1s, which bfloat16 cannot count beyond 256
    table, pairs = torch.ones(1, 3, dtype=torch.bfloat16, device=DEVICE), torch.zeros(n, dtype=torch.int64)
    ones, starts = torch.ones(n, dtype=torch.bfloat16, device=DEVICE), torch.zeros(1, dtype=torch.int64)
    sums = triton_kernels.gather_sum(table, pairs.to(DEVICE), starts.to(DEVICE), ones)
    assert sums.tolist() == [[n, n, n]]
    rows, pair = torch.ones(1, n, dtype=torch.bfloat16, device=DEVICE), starts.to(DEVICE)
    assert triton_kernels.gather_dot(rows, rows, pair, pair).tolist() == [n]


@runs
@laws.each_width
@laws.each_bag_sizes
@each_dtype
def test_gather_dot_multiplies_as_a_loop_does(width, sizes, dtype):
    assert laws.gather_dot_multiplies_as_a_loop_does(triton_kernels.gather_dot, width, sizes, dtype, DEVICE)


@runs
def test_views_are_taken_as_they_are():
    assert laws.gather_sum_takes_views(triton_kernels.gather_sum, DEVICE)
    assert laws.gather_dot_takes_views(triton_kernels.gather_dot, DEVICE)


@runs
@laws.each_tile_shape
@laws.each_kind_of_bounds
@each_dtype
def test_indices_above_finds_what_a_loop_finds(shape, bounds, dtype):
    assert laws.indices_above_finds_what_a_loop_finds(triton_kernels.indices_above, shape, bounds, dtype, DEVICE)


@runs
@laws.each_tile_shape
@each_dtype
def test_indices_above_takes_0_where_no_bounds_are_given(shape, dtype):
    assert laws.indices_above_takes_0_where_no_bounds_are_given(triton_kernels.indices_above, shape, dtype, DEVICE)


@runs
@pytest.mark.parametrize("index_type", [torch.int64, torch.int32], ids=str)
def test_a_table_may_hold_more_numbers_than_31_bits_count(index_type):
    far, stride = 2**12, 2**19  # neither of which needs more than 31 bits
    numbers = torch.empty(far * stride + 2, dtype=torch.bfloat16, device=DEVICE)  # a CPU keeps what is touched
    one = torch.ones(1, dtype=torch.bfloat16, device=DEVICE)
    first, last = (torch.tensor([i], dtype=index_type, device=DEVICE) for i in (0, far))

    far_rows = numbers.as_strided((far + 1, 2), (stride, 1)).zero_()
    far_rows[far] = torch.tensor([3.0, 4.0])
    assert triton_kernels.gather_sum(far_rows, last, first, one).tolist() == [[3, 4]]
    assert triton_kernels.gather_dot(far_rows, far_rows, last, last).tolist() == [25]

    far_columns = numbers.as_strided((2, far + 1), (1, stride)).zero_()
    far_columns[0, far] = 5
    assert triton_kernels.gather_sum(far_columns, first, first, one)[0, far] == 5
    assert triton_kernels.gather_dot(far_columns, far_columns, first, first).tolist() == [25]


@runs_on_a_gpu
def test_so_may_a_result_and_a_tile():
    width = 4608
    n = 2**31 // width + 2
    ones = torch.ones(1, width, dtype=torch.bfloat16, device=DEVICE)
    starts, pair = torch.zeros(n, dtype=torch.int64, device=DEVICE), torch.zeros(1, dtype=torch.int64, device=DEVICE)
    sums = triton_kernels.gather_sum(ones, pair, starts, ones[0, :1])  # all bags empty but the last
    assert triton_kernels.indices_above(sums).tolist() == list(range((n - 1) * width, n * width))


@runs
@pytest.mark.parametrize("name", ["gather_sum", "gather_dot", "indices_above"])
def test_where_triton_is_used_its_operations_are(name, monkeypatch):
    called = []
    operation = getattr(triton_kernels, name)
    monkeypatch.setattr(kernels, "uses_triton", lambda tensor: True)
    monkeypatch.setattr(triton_kernels, name, lambda *given: called.append(name) or operation(*given))
    table, pairs = torch.eye(2, device=DEVICE), torch.tensor([0, 1], device=DEVICE)
    tensors = {
        "gather_sum": (table, pairs, pairs, torch.ones(2, device=DEVICE)),
        "gather_dot": (table, table, pairs, pairs),
        "indices_above": (table, torch.zeros(2, device=DEVICE)),
    }[name]
    expected = {"gather_sum": [[1, 0], [0, 1]], "gather_dot": [1, 1], "indices_above": [0, 3]}[name]
    assert getattr(kernels, name)(*tensors).tolist() == expected
    assert called == [name]


COMPILE = """
import importlib.util, sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

spec = importlib.util.spec_from_file_location("triton_kernels", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
kernel = getattr(module, sys.argv[2])
for dtype in ("fp32", "bf16", "fp64"):
    types = dict(zip(kernel.arg_names, sys.argv[3].replace("T", dtype).split(), strict=True))
    def aligned_but(*names):
        return {(i,): [["tt.divisibility", 16]] for i, name in enumerate(types) if name not in names}
    steps = {name: 1 for name in types if name in ("column_step", "table_step", "row_step")}
    variants = [(steps, aligned_but("n_pairs", *steps)), ({}, {})]
    if "bounds" in types:
        variants.append(({"bounds": None}, aligned_but("bounds")))
    for constants, attributes in variants:
        source = ASTSource(kernel, types | dict.fromkeys(constants, "constexpr"), constants, attributes)
        ptx = compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
        loads = {"fp32": "ld.global.v4.b32", "bf16": "ld.global.v4.b32", "fp64": "ld.global.v2.b64"}[dtype]
        print(kernel.__name__, dtype, ".target sm_90" in ptx, loads in ptx)
"""
SIGNATURES = {
    "_gather_sum": "*T i32 i32 *i64 *i64 *T *T i32 i32 i32",
    "_gather_dot": "*T i32 i32 *T i32 i32 *i64 *i64 *T i32 i32",
    "_count_above": "*T *T i32 *i64",
    "_write_above": "*T *T i32 *i64 *i64 *i64",
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_it_compiles_for_hopper_with_loads_of_16_bytes_where_rows_are_aligned(name, tmp_path):
    """In another process, because interpreting is decided when Triton is imported."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, triton_kernels.__file__, name, SIGNATURES[name]],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    wide_loads = (True, False, True) if "_above" in name else (True, False)  # the third without bounds
    lines = [f"{name} {dtype} True {wide}" for dtype in ("fp32", "bf16", "fp64") for wide in wide_loads]
    assert result.stdout.splitlines() == lines
