"""Profiles are what counting token by token gives."""

import math

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.statistics.profiles import activation_profiles
from tests.models.small_models import random_hooked_transformer, some_tokens

D_MODELS, D_SAE, HOOK = (8, 16), 7, "blocks.0.hook_resid_post"
TOKENS = some_tokens(n_prompts=9, n_pos=10)
KEEP = torch.rand(TOKENS.shape, generator=torch.Generator().manual_seed(4)) < 0.6
KEEP[-3:] = False


@pytest.fixture(scope="module")
def looked_at():
    pair = slc.HookedModelPair(*[random_hooked_transformer(d, seed=seed) for seed, d in enumerate(D_MODELS, start=1)])
    crosscoder = slc.ReLUCrosscoder(slc.ReLUCrosscoderConfig(d_models=D_MODELS, d_sae=D_SAE, dtype="float64"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in crosscoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
        crosscoder.b_enc[2] = -1e3  # dead
    crosscoder.cfg.metadata.hook_name = HOOK
    scores = crosscoder.encode(pair.activations(TOKENS, HOOK).double()).detach()
    return pair, crosscoder, scores


@pytest.mark.parametrize("keep", [None, KEEP])
@pytest.mark.parametrize("source", ["pair", "cache"])
@pytest.mark.parametrize("batch", [2, 32])
def test_profiles_are_counts_of_tokens(looked_at, tmp_path, batch, source, keep):
    pair, crosscoder, scores = looked_at
    highest = scores.amax(dim=(0, 1))
    data = slc.EvalData(pair=pair, tokens=TOKENS, token_mask=keep, batch_size=batch)
    if source == "cache":
        cache = slc.cache_activations(
            tmp_path, pair, TOKENS, HOOK, token_mask=keep, dtype="float32", prompts_per_shard=4
        )
        data = slc.EvalData(activations=cache)
    found = activation_profiles(crosscoder, data, pd.Series(highest.tolist()), n_bins=5, n_bands=4)
    # Ten positions in four bands.
    assert (found.first_positions, found.last_position) == ((0, 3, 5, 8), 9)
    counts = torch.ones_like(TOKENS) if keep is None else keep
    bands = [range(0, 3), range(3, 5), range(5, 8), range(8, 10)]
    for latent in range(D_SAE):
        histogram, n_on = [0] * 5, [0] * 4
        for prompt in range(9):
            for position in range(10):
                score = scores[prompt, position, latent].item()
                if score > 0 and counts[prompt, position]:
                    histogram[min(4, math.floor(5 * score / highest[latent].item()))] += 1
                    n_on[next(b for b, band in enumerate(bands) if position in band)] += 1
        assert found.histogram[latent].tolist() == histogram
        shares = [n / int(counts[:, band].sum()) for n, band in zip(n_on, bands, strict=True)]
        assert found.by_position[latent].tolist() == pytest.approx(shares)
    assert found.histogram[2].sum() == 0 < found.histogram.sum()


def test_positions_end_with_the_last_token_that_counts(looked_at):
    pair, crosscoder, scores = looked_at
    highest = pd.Series(scores.amax(dim=(0, 1)).tolist())
    whole = activation_profiles(crosscoder, slc.EvalData(pair=pair, tokens=TOKENS[:, :6]), highest, n_bands=3)
    keep = torch.arange(10).expand_as(TOKENS) < 6
    padded = activation_profiles(
        crosscoder, slc.EvalData(pair=pair, tokens=TOKENS, token_mask=keep), highest, n_bands=3
    )
    for found in (whole, padded):
        assert (found.first_positions, found.last_position) == ((0, 2, 4), 5)
    assert torch.equal(padded.histogram, whole.histogram)
    torch.testing.assert_close(padded.by_position, whole.by_position)


def test_a_band_without_tokens_is_unknown(looked_at):
    pair, crosscoder, scores = looked_at
    keep = torch.arange(10).expand_as(TOKENS) >= 3
    highest = pd.Series(scores.amax(dim=(0, 1)).tolist())
    found = activation_profiles(crosscoder, slc.EvalData(pair=pair, tokens=TOKENS, token_mask=keep), highest, n_bands=4)
    assert found.by_position[:, 0].isnan().all()
    assert not found.by_position[:, 1:].isnan().any()


def test_scores_above_the_highest_are_in_the_last_bin(looked_at):
    pair, crosscoder, scores = looked_at
    found = activation_profiles(crosscoder, slc.EvalData(pair=pair, tokens=TOKENS), pd.Series([0.0] * D_SAE), n_bins=3)
    assert found.histogram[:, 2].tolist() == (scores > 0).sum(dim=(0, 1)).tolist()
    assert found.histogram[:, :2].sum() == 0


def test_highest_scores_of_another_crosscoder_are_refused(looked_at):
    pair, crosscoder, _ = looked_at
    with pytest.raises(ValueError, match="max_activation has 3 entries, but the crosscoder has 7 latents"):
        activation_profiles(crosscoder, slc.EvalData(pair=pair, tokens=TOKENS), pd.Series([1.0] * 3))
