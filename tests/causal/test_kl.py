"""Laws of the KL divergence: a loop over the vocabulary, a softmax in float32, and 0 for equal distributions."""

import math

import pytest
import torch

from sae_lens_crosscoder.causal import kl_divergence, log_probs


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_it_is_the_sum_over_the_vocabulary_in_nats_from_a_softmax_in_float32(dtype):
    p, q = (4 * torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in (0, 1))
    kl = kl_divergence(log_probs(p), log_probs(q))
    assert kl.dtype == log_probs(p).dtype == torch.float32
    for batch in range(2):
        for pos in range(3):
            a, b = (logits[batch, pos].double().softmax(-1).tolist() for logits in (p, q))
            expected = sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))
            assert kl[batch, pos].item() == pytest.approx(expected, rel=1e-5)


def test_equal_distributions_are_at_0_and_a_shift_of_all_logits_changes_nothing():
    p, q = torch.randn(5, 50, generator=torch.Generator().manual_seed(0)).split([2, 3])
    assert torch.equal(kl_divergence(log_probs(p), log_probs(p)), torch.zeros(2))
    shifted = kl_divergence(log_probs(p + 3), log_probs(q[:2] - 2))
    torch.testing.assert_close(shifted, kl_divergence(log_probs(p), log_probs(q[:2])))
