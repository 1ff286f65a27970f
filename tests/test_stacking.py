"""The stacked axis comes apart and together again without loss."""

import pytest
import torch

import sae_lens_crosscoder as slc

StackedLayout = slc.stacking.StackedLayout
LAYOUT = StackedLayout((2, 3, 1))


def test_stack_is_the_inverse_of_split():
    x = torch.randn(4, 5, 6)
    assert torch.equal(LAYOUT.stack(LAYOUT.split(x)), x)


def test_split_returns_views():
    x = torch.zeros(4, 6)
    LAYOUT.split(x)[1].fill_(1)
    assert x.sum() == 12


def test_norms_of_the_models_add_up_to_the_norm_of_the_stack():
    x = torch.randn(4, 6, dtype=torch.float64)
    torch.testing.assert_close(LAYOUT.norms(x).square().sum(dim=-1), x.square().sum(dim=-1))


def test_expand_scales_each_models_slice():
    x, factors = torch.randn(4, 6), torch.tensor([2.0, 3.0, 5.0])
    for part, scaled, factor in zip(LAYOUT.split(x), LAYOUT.split(x * LAYOUT.expand(factors)), factors, strict=True):
        assert torch.equal(part * factor, scaled)


def test_wrong_widths_are_named():
    with pytest.raises(ValueError, match=r"last axis is 5 wide, expected 6, the sum of the models' widths \(2, 3, 1\)"):
        LAYOUT.split(torch.zeros(4, 5))
    with pytest.raises(ValueError, match=r"parts are \(3, 2, 1\) wide, expected \(2, 3, 1\)"):
        LAYOUT.stack([torch.zeros(4, 3), torch.zeros(4, 2), torch.zeros(4, 1)])


def test_parts_of_several_hooks_lie_model_by_model():
    layout = StackedLayout((1, 2, 3, 4), hook_names=("early", "late"))
    assert not layout.is_pair
    stacked = torch.arange(10.0)
    by_model = layout.of_models.split(stacked)
    parts = [
        part for m, of_model in enumerate(by_model) for part in layout.at_hooks(of_model, m, "early+late").values()
    ]
    assert all(torch.equal(part, expected) for part, expected in zip(parts, layout.split(stacked), strict=True))
    assert [layout.names[i] for i in layout.of_model("chat")] == ["chat@early", "chat@late"]


@pytest.mark.parametrize(("d_models", "hook_names"), [((1, 1, 1), ("a", "b")), ((1, 1), ("a", "a")), ((1,), ("a",))])
def test_hooks_that_do_not_fit_the_widths_are_refused(d_models, hook_names):
    with pytest.raises(ValueError, match=r"hook_names=|expected one for every model"):
        StackedLayout(d_models, hook_names)
