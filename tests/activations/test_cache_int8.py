"""A cache of int8: half of bfloat16's bytes, numbers within half a step, and the same crosscoder's figures."""

import json
import warnings

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache.rows import (
    Int8Rows,
    bytes_of_row,
    frac_lost,
    load_rows,
    stored_rows,
    validate_dtype,
)
from tests.activations.test_cache import HOOK, TOKENS, by_hand, edit_manifest, files, write
from tests.models.small_models import random_hooked_transformer

BOTH_HOOKS = "blocks.0.hook_resid_post+blocks.1.hook_resid_post"


@pytest.fixture(scope="module")
def pair():
    models = random_hooked_transformer(64, seed=0), random_hooked_transformer(96, seed=1)
    return slc.HookedModelPair(*models, model_names=("some/base", "some/chat"))


def read(rows, widths):
    return Int8Rows(stored_rows(rows, widths, "int8"), widths)[:]


def looped(row):
    """One row of one source, number by number, with a scale that bfloat16 holds."""
    largest = max(abs(value) for value in row)
    scale = torch.tensor(largest / 127 * (1 + 2**-8)).bfloat16().item()
    assert scale * 127 >= largest
    return [round(value / scale) * scale for value in row] if scale > 0 else [0.0 for _ in row]


def test_numbers_are_the_loops_steps_of_a_scale_per_row_and_source():
    x = torch.randn(40, 7, generator=torch.Generator().manual_seed(0)) * torch.logspace(-6, 6, 40)[:, None]
    x[3] = 0
    found = read(x, (5, 2))
    for row, expected in zip(x.tolist(), found.tolist(), strict=True):
        assert expected == pytest.approx(looped(row[:5]) + looped(row[5:]), rel=1e-6)
    for part, whole in zip((found - x).split([5, 2], dim=1), x.split([5, 2], dim=1), strict=True):
        step = whole.abs().amax(dim=1, keepdim=True) / 127
        assert (part.abs() <= 0.5 * step * (1 + 2**-7) + 1e-12).all()


def test_what_is_read_lies_within_half_a_step_of_what_the_models_gave_in_order_and_shuffled(pair, tmp_path):
    cache = write(pair, tmp_path, dtype="int8")
    expected, in_order = by_hand(pair), torch.cat(list(cache))
    assert in_order.dtype == torch.float32
    for part, rows in zip(pair_parts(in_order - expected), pair_parts(expected), strict=True):
        assert (part.abs() <= rows.abs().amax(dim=1, keepdim=True) / 250).all()
        assert part.abs().max() > 0
    batches = torch.cat(list(cache.shuffled(16, n_passes=1, block_size=4, buffer_size=32)))
    # Rows of fewer tokens are multiplied by the same scales, so they are the same to the bit.
    known = {tuple(row) for row in in_order.tolist()}
    assert {tuple(row) for row in batches.tolist()} <= known
    assert len(batches) == 16 * (len(in_order) // 16)


def pair_parts(rows):
    return rows.split([64, 96], dim=1)


@pytest.mark.parametrize("hook_name", [HOOK, BOTH_HOOKS])
def test_files_have_half_of_bfloat16s_bytes(pair, tmp_path, hook_name):
    sizes = {}
    for dtype in ("int8", "bfloat16"):
        cache = write(pair, tmp_path / dtype, hook_name=hook_name, dtype=dtype)
        sizes[dtype] = sum(path.stat().st_size for path in (tmp_path / dtype).glob("*.bin"))
        assert cache.manifest.n_bytes == sizes[dtype]
        assert slc.ActivationCache(tmp_path / dtype).manifest == cache.manifest
    assert sizes["int8"] <= 0.52 * sizes["bfloat16"]


def test_each_hook_of_a_model_has_its_own_scale(pair, tmp_path):
    """The second hook's numbers are far larger; one scale for both would lose the first's."""
    rows = torch.cat([torch.randn(20, 8), 1000 * torch.randn(20, 8)], dim=1)
    assert frac_lost(rows[:, :8], (8,)) < 1e-3
    assert (read(rows, (8, 8))[:, :8] - rows[:, :8]).abs().max() < 0.02
    assert (read(rows, (16,))[:, :8] - rows[:, :8]).abs().max() > 0.5
    cache = write(pair, tmp_path, hook_name=BOTH_HOOKS, dtype="int8")
    assert cache.manifest.widths == {"base": (64, 64), "chat": (96, 96)}
    assert len(next(iter(cache))[0]) == 2 * (64 + 96)


def test_a_token_that_dominates_does_not_change_how_much_int8_takes_of_a_usual_one():
    rows = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    usual = frac_lost(rows, (16,))
    assert 0 < usual < 1e-3
    rows[7] = 1e6 * torch.eye(16)[3] + 100 * rows[7]
    assert 0.8 * usual < frac_lost(rows, (16,)) < 1.25 * usual


def test_a_warning_says_where_some_coordinates_are_far_larger_than_all_others(pair, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        write(pair, tmp_path / "usual", dtype="int8")
    with pair.hooks(fwd_hooks=[]), torch.no_grad():
        bias = pair.base.blocks[0].mlp.b_out
        bias[3] += 1e4
        try:
            with pytest.warns(UserWarning, match=r"int8 takes .* variance from the base model's .*dtype='bfloat16'"):
                write(pair, tmp_path / "loud", dtype="int8")
        finally:
            bias[3] -= 1e4


def test_a_missing_or_damaged_file_is_named_and_written_again(pair, tmp_path):
    write(pair, tmp_path, dtype="int8")
    before, path = files(tmp_path), tmp_path / "00001.chat.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=r"00001\.chat\.bin: checksum mismatch"):
        list(slc.ActivationCache(tmp_path))
    path.unlink()
    write(pair, tmp_path, dtype="int8")
    assert path.read_bytes() == whole
    unchanged = {name for name, time in files(tmp_path).items() if time == before.get(name)}
    assert {"00000.base.bin", "00001.base.bin", "00000.chat.bin"} <= unchanged


def test_the_format_has_a_version_for_int8_and_keeps_the_old_one_for_the_rest(pair, tmp_path):
    for dtype, version in (("bfloat16", 2), ("float32", 2), ("int8", 3)):
        write(pair, tmp_path / dtype, dtype=dtype)
        fields = json.loads((tmp_path / dtype / "manifest.json").read_text())
        assert fields["format_version"] == version
        edit_manifest(tmp_path / dtype, lambda fields, v=version: fields.update(format_version=5 - v))
        with pytest.raises(ValueError, match=f"format_version={5 - version}, expected {version}"):
            slc.ActivationCache(tmp_path / dtype)


@pytest.mark.parametrize("dtype", ["float16", "int4", "uint8"])
def test_other_precisions_are_refused_by_name(pair, tmp_path, dtype):
    with pytest.raises(ValueError, match=f"dtype='{dtype}' is not one of .*'int8'"):
        validate_dtype(dtype)
    write(pair, tmp_path, dtype="int8")
    edit_manifest(tmp_path, lambda fields: fields.update(dtype=dtype))
    with pytest.raises(ValueError, match=r"manifest\.json"):
        slc.ActivationCache(tmp_path)


def test_an_int8_cache_is_another_cache_than_one_of_bfloat16(pair, tmp_path):
    write(pair, tmp_path)
    with pytest.raises(ValueError, match="its dtype is 'bfloat16', not 'int8'"):
        write(pair, tmp_path, dtype="int8")
    assert bytes_of_row((16,), "float32") == 4 * bytes_of_row((14,), "int8")
    rows = load_rows(tmp_path / "00000.base.bin", len(TOKENS[:4].flatten()), (64,), "bfloat16")
    assert isinstance(rows, torch.Tensor)
