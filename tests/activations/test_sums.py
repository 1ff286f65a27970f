"""Variance explained and mean norms are of the whole set of tokens, whatever the batches."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.scales import MeanNorms
from sae_lens_crosscoder.activations.variance import VarianceExplained
from tests.reference.variance import mean_norm, variance_explained, variance_explained_of_difference

LAYOUT = slc.stacking.StackedLayout((2, 3))
CUTS = {"base": slice(0, 2), "chat": slice(2, 5)}


PAIR = slc.stacking.StackedLayout((3, 3))


def fve_of(x, guess, sizes=None, layout=LAYOUT):
    fve = VarianceExplained(layout)
    for part, estimate in zip(x.split(sizes or [len(x)]), guess.split(sizes or [len(x)]), strict=True):
        fve.add(part, estimate)
    return fve


@pytest.mark.parametrize("sizes", [[30], [1, 9, 20], [0, 15, 0, 15], [1] * 30])
def test_variance_explained_is_over_the_whole_set(sizes):
    x = torch.randn(30, 5, dtype=torch.float64) * torch.arange(1, 31)[:, None]
    guess = x + torch.randn(30, 5, dtype=torch.float64)
    fve = fve_of(x, guess, sizes)
    expected = {name: variance_explained(x[:, cut].tolist(), guess[:, cut].tolist()) for name, cut in CUTS.items()}
    assert fve.per_source() == pytest.approx(expected)
    assert fve.pooled() == pytest.approx(variance_explained(x.tolist(), guess.tolist()))


@pytest.mark.parametrize("sizes", [[30], [1, 9, 20], [0, 15, 0, 15]])
@pytest.mark.parametrize("shift", [0.0, 1e6])
def test_variance_explained_of_the_difference_is_over_the_whole_set(sizes, shift):
    x, noise = torch.randn(2, 30, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fve = fve_of(x + shift, x + 0.3 * noise, sizes, PAIR)
    expected = variance_explained_of_difference(x.tolist(), (x + 0.3 * noise).tolist(), 3)
    assert fve.difference() == pytest.approx(expected, abs=1e-6)
    assert 0 < expected < 1
    figures = {**fve.per_source(), "pooled": fve.pooled(), "difference": fve.difference()}
    assert fve.all_figures() == figures
    assert list(figures) == ["base", "chat", "pooled", "difference"]


def test_two_models_can_be_explained_well_and_their_difference_not_at_all():
    base, tuning = torch.randn(2, 500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([base, base + 0.05 * tuning], dim=-1)
    blind = fve_of(x, torch.cat([base, base], dim=-1), layout=PAIR)  # one shared direction per concept
    assert min(blind.per_source().values()) > 0.99
    assert blind.difference() == pytest.approx(0)
    assert fve_of(x, x, layout=PAIR).difference() == 1


def test_models_are_identical_only_if_every_activation_is_equal():
    base = torch.randn(30, 3, dtype=torch.float64)
    x = torch.cat([base, base], dim=-1)
    same = fve_of(x, 0.5 * x, [10, 20], PAIR)
    assert same.models_are_identical
    assert same.difference() != same.difference()
    one_number = x.clone()
    one_number[17, 4] += 1e-9
    steered = x + PAIR.expand(torch.tensor([0.0, 1.0]))  # does not vary, but is a difference
    for changed in (one_number, steered):
        assert not fve_of(changed, 0.5 * x, [10, 20], PAIR).models_are_identical
    again = VarianceExplained(PAIR)
    again.load_state_dict(same.state_dict())
    assert again.models_are_identical
    assert not VarianceExplained(PAIR).models_are_identical


@pytest.mark.parametrize("d_models", [(2, 3), (2, 2, 2), (4,)])
def test_the_difference_is_undefined_unless_two_models_have_one_width(d_models):
    layout = slc.stacking.StackedLayout(d_models)
    x = torch.zeros(30, layout.d_in, dtype=torch.float64)
    fve = fve_of(x, x, layout=layout)
    assert fve.difference() != fve.difference()
    assert not fve.models_are_identical


@pytest.mark.parametrize("shift", [0.0, 5.0, -1e8])
def test_a_constant_offset_explains_and_costs_nothing(shift):
    x = torch.randn(30, 5, dtype=torch.float64)
    assert fve_of(x + shift, 0.5 * x).pooled() == pytest.approx(0.75, abs=1e-6)
    assert fve_of(x, 0.5 * x + shift).pooled() == pytest.approx(0.75, abs=1e-6)
    assert fve_of(x + shift, torch.zeros_like(x)).pooled() == pytest.approx(0, abs=1e-6)


def test_a_guess_worse_than_the_mean_explains_less_than_nothing():
    x = torch.randn(30, 5, dtype=torch.float64)
    assert fve_of(x, -x).pooled() == pytest.approx(-3)


@pytest.mark.parametrize("constant", [0.0, 0.1, 97.3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_model_that_does_not_vary_has_no_variance_to_explain(constant, dtype):
    x = torch.randn(1001, 5, dtype=dtype)
    x[:, :2] = constant
    for blur in (0, 1):  # of the guess of what does not vary
        guess = 0.5 * x
        guess[:, :2] += blur * torch.randn(1001, 2, dtype=dtype)
        fve = fve_of(x, guess, [333, 668])
        assert fve.per_source() == pytest.approx({"base": float("nan"), "chat": 0.75}, nan_ok=True)
    assert fve_of(x, 0.5 * x, [333, 668]).pooled() == pytest.approx(0.75)
    assert fve_of(x[:1], x[:1]).pooled() != fve_of(x[:1], x[:1]).pooled()


def test_no_tokens_are_an_error():
    fve = VarianceExplained(LAYOUT)
    fve.add(torch.zeros(0, 5), torch.zeros(0, 5))
    for ask in (fve.pooled, fve.per_source, fve.difference):
        with pytest.raises(ValueError, match="undefined without tokens"):
            ask()


@pytest.mark.parametrize("sizes", [[30], [7, 23], [0, 30]])
def test_mean_norms_are_means_of_norms(sizes):
    x = torch.randn(30, 5, dtype=torch.float64)
    norms = MeanNorms(LAYOUT)
    for part in x.split(sizes):
        norms.add(part)
    base, chat = (mean_norm(x[:, cut].tolist()) for cut in CUTS.values())
    assert norms.scales().tolist() == pytest.approx([2**0.5 / base, 3**0.5 / chat])
    assert norms.stacked_scale() == pytest.approx(5**0.5 / mean_norm(x.tolist()))


def test_scaled_activations_have_mean_norm_sqrt_d_model_in_every_model():
    x = torch.randn(30, 5, dtype=torch.float64) * torch.tensor([1.0, 1, 40, 40, 40])
    norms = MeanNorms(LAYOUT)
    norms.add(x)
    scaled = x * LAYOUT.expand(norms.scales())
    assert [mean_norm(scaled[:, cut].tolist()) for cut in CUTS.values()] == pytest.approx([2**0.5, 3**0.5])


@pytest.mark.parametrize(("value", "shown"), [(0.0, "0.0"), (float("nan"), "nan"), (float("inf"), "inf")])
def test_a_model_that_is_always_zero_or_not_finite_cannot_be_scaled(value, shown):
    norms = MeanNorms(LAYOUT)
    x = torch.ones(4, 5)
    x[:, 2:] = value
    norms.add(x)
    with pytest.raises(ValueError, match=f"The chat model's activations have mean norm {shown} and cannot"):
        norms.scales()


def test_without_tokens_there_is_no_scale():
    with pytest.raises(ValueError, match="cannot be scaled"):
        MeanNorms(LAYOUT).scales()
