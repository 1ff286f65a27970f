"""Tokens that dominate: the rule against loops, full batches without them, and the exact place to resume from."""

import math

import pytest
import torch

from sae_lens_crosscoder.activations.dominant_tokens import (
    DominantTokens,
    NormLimits,
    describe_dominant_tokens,
    token_norms,
    validate_max_norm_ratio,
)
from sae_lens_crosscoder.activations.training_batches import TrainingBatches
from sae_lens_crosscoder.stacking import StackedLayout
from tests.reference import dominant_tokens as reference

LAYOUT = StackedLayout((3, 2))
BATCH = 8


def batches(n=12, seed=0, loud=(3, 8, 9, 10, 50, 77), models=(0, 1), batch_size=BATCH):
    """Batches in which some tokens are 100 times as large, in the given models."""
    tokens = 1 + torch.randn(n * batch_size, LAYOUT.d_in, generator=torch.Generator().manual_seed(seed)).abs()
    gain = torch.tensor([100.0 if m in models else 1.0 for m in (0, 1)])
    tokens[list(loud)] *= LAYOUT.expand(gain)
    return list(tokens.split(batch_size))


def served(given, limits, n_ahead=0):
    stream = TrainingBatches(iter(given), n_ahead)
    stream.ordinary.start(limits)
    return stream, list(stream)


class TestRule:
    @pytest.mark.parametrize("ratio", [2.5, 3.0, 10.0])
    @pytest.mark.parametrize("seed", range(5))
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_limits_and_tokens_are_those_of_a_loop(self, seed, ratio, dtype):
        generator = torch.Generator().manual_seed(seed)
        tokens = (torch.randn(15, LAYOUT.d_in, generator=generator, dtype=torch.float64) / 2).exp().to(dtype)
        tokens[seed] = 0
        limits = NormLimits.measured(LAYOUT, token_norms(tokens, LAYOUT), ratio)
        assert limits.max_norms == pytest.approx(reference.limits_of(tokens.tolist(), (3, 2), ratio), rel=1e-5)
        expected = [reference.is_ordinary(token, (3, 2), limits.max_norms) for token in tokens.tolist()]
        assert limits.ordinary(tokens).tolist() == expected

    def test_a_gain_of_one_model_changes_nothing(self):
        tokens = torch.cat(batches())
        louder = tokens * LAYOUT.expand(torch.tensor([1.0, 64.0]))
        masks = [NormLimits.measured(LAYOUT, token_norms(x, LAYOUT), 10.0).ordinary(x) for x in (tokens, louder)]
        assert torch.equal(*masks)
        assert (~masks[0]).nonzero().flatten().tolist() == [3, 8, 9, 10, 50, 77]

    def test_limits_that_leave_out_more_than_a_quarter_are_refused(self):
        tokens = torch.ones(20, 5)
        tokens[:5] = 100
        assert int((~NormLimits.measured(LAYOUT, token_norms(tokens, LAYOUT), 10.0).ordinary(tokens)).sum()) == 5
        tokens[5] = 100
        with pytest.raises(ValueError, match=r"max_norm_ratio=10 would leave out 6 of 20 tokens.* Use None to keep"):
            NormLimits.measured(LAYOUT, token_norms(tokens, LAYOUT), 10.0)

    @pytest.mark.parametrize("models", [(0,), (1,)])
    def test_one_model_is_enough(self, models):
        tokens = torch.cat(batches(models=models))
        assert int((~NormLimits.measured(LAYOUT, token_norms(tokens, LAYOUT), 10.0).ordinary(tokens)).sum()) == 6

    def test_a_silent_model_has_no_limit_and_silent_tokens_no_say_in_the_median(self):
        tokens = torch.zeros(20, 5)
        tokens[:3, 3:] = torch.tensor([[3.0, 4.0]])
        limits = NormLimits.measured(LAYOUT, token_norms(tokens, LAYOUT), 10.0)
        assert limits.max_norms == (0.0, 50.0)
        assert bool(limits.ordinary(tokens).all())

    def test_without_limits_every_token_is_used(self):
        assert bool(NormLimits(LAYOUT, None).ordinary(torch.cat(batches())).all())

    def test_what_is_not_finite_is_left_to_the_check_that_names_it(self):
        tokens = torch.ones(3, 5)
        tokens[0, 0], tokens[1, 4] = math.nan, math.inf
        assert NormLimits(LAYOUT, (2.0, 2.0)).ordinary(tokens).tolist() == [True, True, True]

    def test_half_precision_does_not_overflow(self):
        tokens = torch.full((2, 5), 200.0, dtype=torch.float16)
        tokens[1] *= 100  # whose square is beyond float16
        assert NormLimits(LAYOUT, (1000.0, 1000.0)).ordinary(tokens).tolist() == [True, False]

    @pytest.mark.parametrize("ratio", [1.0, 0.5, -3.0, math.inf, math.nan])
    def test_a_ratio_that_would_leave_out_half_of_all_tokens_is_refused(self, ratio):
        with pytest.raises(ValueError, match=r"must be above 1, such as 10.* Use None to keep all tokens"):
            validate_max_norm_ratio(ratio)

    @pytest.mark.parametrize("limits", [(1.0,), (1.0, -2.0), (1.0, math.inf), (math.nan, 1.0)])
    def test_limits_that_fit_no_models_are_refused(self, limits):
        with pytest.raises(ValueError, match="must have one finite number, at least 0, for each of 2 sources"):
            NormLimits(LAYOUT, limits)


class TestFullBatches:
    @pytest.mark.parametrize("loud", [(), (3,), (3, 8, 9, 10, 50, 77), tuple(range(8, 24)), tuple(range(90))])
    @pytest.mark.parametrize("n_ahead", [0, 2])
    def test_they_are_the_ordinary_tokens_in_order(self, loud, n_ahead):
        given, limits = batches(loud=loud), NormLimits(LAYOUT, (40.0, 40.0))
        stream, found = served(given, limits, n_ahead)
        full, n_left_out, shares = reference.ordinary_batches(given, (3, 2), (40.0, 40.0), BATCH)
        assert [batch.tolist() for batch in found] == full
        assert stream.ordinary.left_out.n_left_out == n_left_out == len(loud)
        assert list(stream.ordinary.left_out.frac_energy.values()) == pytest.approx(shares)

    def test_a_stream_without_them_is_served_as_it_is(self):
        given = batches(loud=())
        _, found = served(given, NormLimits(LAYOUT, (40.0, 40.0)))
        assert [batch.data_ptr() for batch in found] == [batch.data_ptr() for batch in given]

    @pytest.mark.parametrize("n_served", [0, 1, 5, 10])
    def test_a_stream_resumes_to_the_bit(self, n_served):
        given, limits = batches(), NormLimits(LAYOUT, (40.0, 40.0))
        _, unbroken = served(given, limits)
        stream = TrainingBatches(iter(given))
        stream.ordinary.first()
        stream.ordinary.start(limits)
        for _ in range(n_served):
            next(stream)
        again = TrainingBatches(iter(given))
        again.load_state_dict(stream.state_dict())
        rest = list(again)
        assert torch.equal(torch.cat(rest), torch.cat(unbroken[n_served:]))
        assert again.ordinary.limits == limits
        assert again.ordinary.left_out.summary() == served(given, limits)[0].ordinary.left_out.summary()

    def test_a_state_that_another_number_of_processes_left_brings_limits_and_counts(self):
        stream, _ = served(batches(), NormLimits(LAYOUT, (40.0, 40.0)))
        again = TrainingBatches(iter(batches()))
        again.fast_forward(stream.state_dict(), ratio=0.5)
        assert again.ordinary.limits == stream.ordinary.limits
        assert (again.ordinary.left_out.n_tokens, again.ordinary.left_out.n_left_out) == (48, 3)
        assert again.ordinary.left_out.frac_energy == stream.ordinary.left_out.frac_energy


class TestSummary:
    def test_it_is_a_sentence_with_the_numbers(self):
        found = DominantTokens(StackedLayout((1, 1)))
        found.add(torch.tensor([[3.0, 1.0], [1.0, 1.0]]), torch.tensor([False, True]))
        text = describe_dominant_tokens(found.summary(), (2.0, 20.0))
        assert text == (
            "Tokens that dominate: left out 1 of 2 (50 %), with norms above 2 (base) or 20 (chat); they hold 90 % "
            "(base) and 50 % (chat) of the energy."
        )

    def test_without_energy_a_share_is_undefined(self):
        found = DominantTokens(StackedLayout((1, 1)))
        found.add(torch.tensor([[0.0, 1.0]]), torch.tensor([True]))
        assert found.summary() == {"n_tokens": 1, "n_left_out": 0, "frac_energy": {"base": None, "chat": 0.0}}

    def test_nothing_is_said_of_a_run_that_keeps_all(self):
        assert "max_norm_ratio=None" in describe_dominant_tokens(DominantTokens(LAYOUT).summary(), None)
