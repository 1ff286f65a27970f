"""Streams of activations in memory, and of null pairs."""

from inspect import unwrap

import pytest
import torch

from sae_lens_crosscoder.stacking import StackedLayout
from sae_lens_crosscoder.synthetic import null_activations, shuffled_batches

LAYOUT = StackedLayout((3, 3))


def test_batches_cover_every_epoch_in_a_new_order():
    batches = shuffled_batches(torch.arange(10.0)[:, None], batch_size=3, seed=0)
    epochs = [torch.cat([next(batches) for _ in range(3)]).squeeze().tolist() for _ in range(2)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert epochs[0] != epochs[1]
    with pytest.raises(ValueError, match="activations has 2 tokens, fewer than batch_size=3"):
        next(shuffled_batches(torch.zeros(2, 1), batch_size=3, seed=0))


def batches(n=4, size=200):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, 6, generator=generator) * torch.arange(1.0, 7.0) for _ in range(n)]


def test_an_identical_pair_is_the_base_model_twice():
    for real, null in zip(batches(), null_activations(batches(), LAYOUT, "identical"), strict=True):
        assert torch.equal(null, torch.cat([real[:, :3], real[:, :3]], dim=-1))


def test_jitter_is_independent_noise_in_proportion_to_every_coordinate():
    real = torch.cat(batches())
    null = torch.cat(list(null_activations(batches(), LAYOUT, "jittered", jitter=0.2)))
    noise = [null[:, :3] - real[:, :3], null[:, 3:] - real[:, :3]]
    for part in noise:
        torch.testing.assert_close(part.std(dim=0), 0.2 * real[:, :3].std(dim=0), rtol=0.15, atol=0)
    assert torch.corrcoef(torch.stack([part.flatten() for part in noise]))[0, 1].abs() < 0.1


def test_a_shuffled_pair_has_the_same_tokens_paired_anew():
    for real, null in zip(batches(), null_activations(batches(), LAYOUT, "shuffled"), strict=True):
        assert torch.equal(null[:, :3], real[:, :3])
        assert torch.equal(null[:, 3:].sort(dim=0).values, real[:, :3].sort(dim=0).values)
        assert (null[:, 3:] == real[:, :3]).all(dim=-1).float().mean() < 0.1


def test_null_streams_depend_on_the_seed_alone_and_refuse_what_is_no_null():
    first, again, other = (
        torch.cat(list(null_activations(batches(), LAYOUT, "jittered", seed=seed))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    with pytest.raises(ValueError, match=r"equal width, but d_models=\(4, 2\)"):
        next(null_activations(batches(), StackedLayout((4, 2)), "identical"))
    unchecked = unwrap(null_activations)
    with pytest.raises(ValueError, match="kind='swapped' is invalid: choose one of"):
        next(unchecked(batches(), LAYOUT, "swapped"))
