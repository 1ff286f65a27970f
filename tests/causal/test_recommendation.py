"""Laws of the recommendation: the first hook with 0.99 of the best share, its interval, and when there is none."""

import math

import pytest
import torch

from sae_lens_crosscoder.causal import Localisation, Recommendation, changed_prompts, recommend
from sae_lens_crosscoder.causal.localisation.changed_prompts import ChangedPrompts
from tests.reference import localisation as reference


def located(shares, kl):
    """Measurements with one token per prompt, whose shares (hook, prompt) are given."""
    kl, shares = torch.as_tensor(kl), torch.as_tensor(shares)
    if shares.ndim == 1:
        shares = shares[:, None].expand(-1, len(kl))
    n_hooks, n = shares.shape
    left = (1 - shares) * kl
    return Localisation(
        hook_names=tuple(f"blocks.{h}.hook_resid_post" for h in range(n_hooks)),
        last=torch.zeros(n, dtype=torch.long),
        kl=kl[:, None],
        patched_last=left,
        patched_all=left,
        patched_sum=left,
        norms=torch.ones(n_hooks, n, 1, 2),
        difference=torch.ones(n_hooks, n, 1),
        last_activations=torch.zeros(n_hooks, n, 2, 3),
        top_ids=torch.zeros(n, 1, 2, 3, dtype=torch.long),
        top_probs=torch.ones(n, 1, 2, 3),
    )


def everyone(n):
    return ChangedPrompts(torch.ones(n, dtype=torch.bool), 1.0, True)


def test_the_first_hook_with_99_percent_of_the_best_share_is_recommended():
    found = recommend(located([0.0, 0.5, 0.985, 0.993, 1.0], torch.full((10,), 2.0)), everyone(10))
    assert found.hook_name == "blocks.3.hook_resid_post"
    assert found.half_hook == "blocks.1.hook_resid_post"
    assert (found.first_hook, found.last_hook, found.frac_same) == (found.hook_name, found.hook_name, 1.0)
    assert found.confidence == "high"
    assert found.share == pytest.approx(0.993)
    assert "brings back 0.993 of the KL (2 nats, 10 prompts)" in found.reason
    assert "rises from 0.5 at block 1" in found.reason
    lower = recommend(located([0.0, 0.5, 0.78, 0.8], torch.full((10,), 2.0)), everyone(10))
    assert lower.hook_name == "blocks.3.hook_resid_post"  # of the best, not of 1


@pytest.mark.parametrize(("n", "confidence"), [(3, "low"), (5, "medium"), (8, "high")])
def test_few_prompts_make_it_less_sure(n, confidence):
    assert recommend(located([0.2, 1.0], torch.full((n,), 2.0)), everyone(n)).confidence == confidence


def test_prompts_that_disagree_widen_the_interval():
    early, late = torch.tensor([0.0] + [1.0] * 7), torch.tensor([0.0] * 7 + [1.0])
    shares = torch.stack([early, *[late] * 9], dim=1)
    agreed = recommend(located(shares[:, 1:], torch.full((9,), 2.0)), everyone(9))
    assert agreed.first_hook == agreed.last_hook
    mixed = torch.stack([early] * 6 + [torch.linspace(0, 1, 8) ** p for p in (0.05, 0.02, 0.01, 3)], dim=1)
    found = recommend(located(mixed, torch.full((10,), 2.0)), everyone(10))
    assert found.first_hook != found.last_hook
    assert found.confidence == "low"
    assert 0 < found.frac_same < 1
    assert recommend(located(mixed, torch.full((10,), 2.0)), everyone(10)) == found  # of a seed


def test_only_the_changed_prompts_count():
    shares = torch.tensor([[1.0] * 4 + [0.0] * 4, [1.0] * 8])
    changed = ChangedPrompts(torch.arange(8) < 4, 1.0, True)
    assert recommend(located(shares, torch.full((8,), 2.0)), changed).hook_name == "blocks.0.hook_resid_post"
    assert recommend(located(shares, torch.full((8,), 2.0)), everyone(8)).hook_name == "blocks.1.hook_resid_post"


def test_no_hook_where_the_models_hardly_differ_or_nothing_is_brought_back():
    quiet = recommend(located([0.5, 1.0], torch.full((8,), 0.01)), everyone(8))
    assert (quiet.hook_name, quiet.confidence) == (None, "none")
    assert "hardly differ on this text: mean KL 0.01 nats" in quiet.reason
    assert "Give prompts on which they should differ" in quiet.reason
    after = recommend(located([0.0, 0.02], torch.full((8,), 3.0)), everyone(8))
    assert after.hook_name is None
    assert "unembedding" in after.reason
    assert math.isnan(after.share)


def test_a_recommendation_survives_json():
    for shares, kl in (([0.5, 1.0], 2.0), ([0.5, 1.0], 0.001)):
        found = recommend(located(shares, torch.full((8,), kl)), everyone(8))
        again = Recommendation.from_dict(found.to_dict())
        assert again.to_dict() == found.to_dict()


def test_prompts_are_split_at_the_best_of_all_cuts():
    generator = torch.Generator().manual_seed(0)
    for n_changed in (2, 7, 15):
        kl = torch.cat([3 + torch.rand(n_changed, generator=generator), 0.2 * torch.rand(9, generator=generator)])
        kl = kl[torch.randperm(len(kl), generator=generator)]
        found = changed_prompts(kl)
        n, split = reference.best_cut(kl.tolist())
        assert found.is_clear
        assert int(found.changed.sum()) == n == n_changed
        assert found.split == pytest.approx(split, abs=1e-6)
        assert kl[found.changed].min() > kl[~found.changed].max()


def test_without_a_clear_gap_the_upper_quarter_counts_as_changed():
    kl = torch.rand(41, generator=torch.Generator().manual_seed(0)).square()  # so that sqrt(KL) is uniform
    found = changed_prompts(kl)
    assert found.split == pytest.approx(reference.best_cut(kl.tolist())[1], abs=1e-6)
    assert not found.is_clear
    assert int(found.changed.sum()) == 11
    assert kl[found.changed].min() > kl[~found.changed].max()
    assert "No clear gap" in found.description
    assert changed_prompts(torch.ones(3)).changed.all()
    assert not changed_prompts(torch.zeros(8)).is_clear
