"""The lens names what the whole vocabulary's attribution names, and KL is the same for many prompts as for one."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import kl_between_models
from sae_lens_crosscoder.causal.latents import logit_attribution as module
from sae_lens_crosscoder.models.tiny import tiny_dataset


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")


@pytest.mark.parametrize("at_once", [1, 2**26])
def test_the_lens_is_the_ends_of_the_attribution(pair, monkeypatch, at_once):
    monkeypatch.setattr(module, "_MAX_LOGITS", at_once)
    directions = torch.randn(5, 96)
    lens, logits = module.logit_lens(pair.chat, directions, k=3), slc.causal.logit_attribution(pair.chat, directions)
    for latent in range(5):
        order = sorted(range(logits.shape[1]), key=lambda token: logits[latent, token].item())
        assert lens.lowered[latent].tolist() == order[:3]
        assert lens.raised[latent].tolist() == order[:-4:-1]
        torch.testing.assert_close(lens.raised_by[latent], logits[latent, order[:-4:-1]])
        torch.testing.assert_close(lens.lowered_by[latent], logits[latent, order[:3]])


def test_kl_of_many_prompts_is_that_of_each(pair):
    tokens = torch.tensor(tiny_dataset(5, seed=3)["input_ids"])
    found = kl_between_models(pair, tokens, batch_size=2)
    for prompt in range(5):
        alone = torch.tensor(slc.causal.token_kl(pair, tokens[[prompt]]).chat_from_base.to_numpy())
        torch.testing.assert_close(found[prompt], alone.to(found), rtol=1e-4, atol=1e-5)
    assert found.max() > 1
