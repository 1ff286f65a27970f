"""Nested atoms: a child keeps nothing of its parent, and every reconstruction stays as it was."""

import pytest
import torch

from sae_lens_crosscoder.crosscoders.sparse_step.pairs import pairs_of
from sae_lens_crosscoder.training.polishing.nesting import nesting_of, separated
from tests.reference import nesting as ref

N_TOKENS = 3000


def codes(leak=0.0, seed=0):
    """Atom 1 fires only where 0 does, 2 nearly so, 3 on its own, 4 exactly where 0 does; `leak` moves 0 with 1."""
    generator = torch.Generator().manual_seed(seed)
    draws = torch.rand(N_TOKENS, 5, generator=generator)
    sizes = 1 + 0.25 * torch.randn(N_TOKENS, 5, generator=generator, dtype=torch.float64).clamp(-3, 3)
    on = torch.zeros(N_TOKENS, 5, dtype=torch.bool)
    on[:, 0] = draws[:, 0] < 0.3
    on[:, 1] = on[:, 0] & (draws[:, 1] < 0.4)
    on[:, 2] = (on[:, 0] & (draws[:, 2] < 0.5)) | (draws[:, 2] < 0.003)
    on[:, 3] = draws[:, 3] < 0.3
    on[:, 4] = on[:, 0]
    f = 3 * sizes * on
    f[:, 0] += leak * f[:, 1]
    return f


def as_dict(nesting):
    return {(int(parent), int(child)): float(slope) for parent, child, slope in zip(*nesting, strict=True)}


@pytest.mark.parametrize("leak", [0.0, 0.7])
def test_nesting_is_the_loop_over_pairs_of_atoms(leak):
    f = codes(leak)
    expected = ref.nested(f.tolist())
    assert set(expected) == {(0, 1), (0, 2), (4, 1), (4, 2)}
    assert as_dict(nesting_of(*pairs_of(f))) == pytest.approx(expected, rel=1e-9)
    assert expected[0, 1] == pytest.approx(leak, abs=0.1)


def test_atoms_that_fire_apart_or_always_together_are_not_nested():
    pairs = set(as_dict(nesting_of(*pairs_of(codes()))))
    assert not pairs & {(0, 3), (3, 0), (0, 4), (4, 0), (1, 0)}


def test_separating_gives_back_the_direction_of_a_child_in_one_model_only():
    """f = (a + s c, c) over (d, u - s d) is the same activation as (a, c) over (d, u)."""
    leak = 0.7
    f, true = codes(leak)[:, :2], codes(0.0)[:, :2]
    d = torch.tensor([0.6, 0.8, 0.6, 0.8], dtype=torch.float64)
    u = torch.tensor([0.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    merged = torch.stack([d, u - leak * d])
    torch.testing.assert_close(f @ merged, true @ torch.stack([d, u]))
    nesting = nesting_of(*pairs_of(f))
    found = separated(merged, nesting)
    assert torch.equal(found[0], d)
    assert found[1, :2].norm() / found[1, 2:].norm() < 0.1 < merged[1, :2].norm() / merged[1, 2:].norm()
    moved = f.clone()
    moved[:, 0] -= nesting.slope[0] * f[:, 1]
    torch.testing.assert_close(moved @ found, f @ merged)
    half = separated(merged, nesting, 0.5)
    torch.testing.assert_close(half, (merged + found) / 2)
