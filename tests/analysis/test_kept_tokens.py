"""What is left out of held-out data counts nowhere: tables are those of the tokens that are kept."""

import pandas as pd
import pytest
import torch

import sae_lens_crosscoder as slc
from tests.analysis.conftest import relu_crosscoder
from tests.models.small_models import random_hooked_transformer, some_tokens

HOOK, D_SAE = "blocks.0.hook_resid_post", 7
N_ROWS, N_POS = 70, 8
TOKENS = some_tokens(n_prompts=N_ROWS, n_pos=N_POS)
# Padding behind every row, and rows of nothing else, which are a batch of their own.
PADDED = some_tokens(n_prompts=N_ROWS + 3, n_pos=15, seed=5)
KEEP = torch.zeros_like(PADDED, dtype=torch.bool)
PADDED[:N_ROWS, :N_POS], KEEP[:N_ROWS, :N_POS] = TOKENS, True
LABELS = torch.randint(-1, 3, PADDED.shape, generator=torch.Generator().manual_seed(3))
NAMES = ("bos", "template", "user")
SOURCES = ["chat", "web"] * (N_ROWS // 2)
WHOLE = dict(tokens=TOKENS, groups=slc.data.TokenGroups(LABELS[:N_ROWS, :N_POS], NAMES), sources=SOURCES)
LEFT_OUT = dict(
    tokens=PADDED, token_mask=KEEP, groups=slc.data.TokenGroups(LABELS, NAMES), sources=[*SOURCES, *SOURCES[:3]]
)


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair(*[random_hooked_transformer(8, seed=seed) for seed in (1, 2)])


@pytest.fixture(scope="module")
def crosscoder():
    """Latents 0 and 1 write one direction, one into each model."""
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(D_SAE, 16, generator=generator)
    W_dec[0, :8] = 0
    W_dec[1] = W_dec[0].roll(8)
    crosscoder = relu_crosscoder(W_dec, W_enc=8 * torch.randn(16, D_SAE, generator=generator), d_models=(8, 8))
    crosscoder.cfg.metadata.hook_name = HOOK
    return crosscoder


def measured(kind, crosscoder, pair, data):
    """Tables, and the numbers of tokens behind them."""
    data = slc.EvalData(**{"pair": pair, "batch_size": 10, **data})
    if kind == "statistics":
        statistics = slc.analysis.latent_statistics(crosscoder, data)
        return [statistics.table], statistics.n_tokens
    if kind == "paper":
        found = slc.paper.paper_tables({"it": crosscoder}, data)["it"]
        return [found.latents, found.pairs], found.manifest["n_tokens_per_place"]
    if kind == "diagnosis":
        diagnosis = slc.diagnose(crosscoder, data)
        return [diagnosis.latents], diagnosis.manifest["n_tokens"]
    pairs = pd.DataFrame({"chat_latent": [0, 2], "base_latent": [1, 3]})
    return [slc.analysis.activation_divergence(crosscoder, data, pairs)], None


KINDS = ("statistics", "paper", "diagnosis", "divergence")


@pytest.mark.parametrize("kind", KINDS)
def test_padding_changes_no_table_whatever_it_is(pair, crosscoder, kind):
    (tables, n_tokens), (whole, n_whole) = (measured(kind, crosscoder, pair, data) for data in (LEFT_OUT, WHOLE))
    for found, expected in zip(tables, whole, strict=True):
        assert len(expected) > 0
        pd.testing.assert_frame_equal(found, expected, rtol=1e-6, atol=1e-9)
    assert n_tokens == n_whole
    everything, _ = measured(kind, crosscoder, pair, {**LEFT_OUT, "token_mask": None})
    assert not everything[0].equals(whole[0])  # or the padding would show nowhere


@pytest.mark.parametrize("kind", KINDS)
def test_keeping_everything_is_leaving_nothing_out(pair, crosscoder, kind):
    data = {**WHOLE, "token_mask": torch.ones_like(TOKENS, dtype=torch.bool)}
    (tables, _), (whole, _) = (measured(kind, crosscoder, pair, data) for data in (data, WHOLE))
    for found, expected in zip(tables, whole, strict=True):
        pd.testing.assert_frame_equal(found, expected, check_exact=True)
