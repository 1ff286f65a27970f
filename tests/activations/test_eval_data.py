"""EvalData takes a pair with tokens, or activations, and refuses everything else by name."""

from dataclasses import replace

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.harvest import harvest
from sae_lens_crosscoder.analysis.inputs import HarvestedActivations
from sae_lens_crosscoder.data import TokenGroups
from tests.models.small_models import random_hooked_transformer, some_tokens

TOKENS = some_tokens(n_prompts=4, n_pos=5)
MASK = TOKENS[0, 0] != TOKENS


@pytest.fixture(scope="module")
def pair():
    return slc.HookedModelPair(*[random_hooked_transformer(8, seed=seed) for seed in (1, 2)])


@pytest.mark.parametrize("fields", [{}, {"tokens": TOKENS}, {"pair"}])
def test_neither_a_pair_with_tokens_nor_activations_is_refused(pair, fields):
    fields = {"pair": pair} if fields == {"pair"} else fields
    with pytest.raises(ValueError, match="Pass either pair and tokens, or activations"):
        slc.EvalData(**fields)


def test_both_are_refused(pair):
    for fields in ({"pair": pair, "tokens": TOKENS}, {"tokens": TOKENS}):
        with pytest.raises(ValueError, match="or activations, not both"):
            slc.EvalData(activations=torch.zeros(3, 16), **fields)


def test_fields_that_do_not_fit_are_refused(pair):
    data = slc.EvalData(pair=pair, tokens=TOKENS)
    with pytest.raises(ValueError, match=r"token_mask has shape \(2, 5\), expected \(4, 5\)"):
        replace(data, token_mask=MASK[:2])
    with pytest.raises(ValueError, match="token_mask applies to tokens"):
        slc.EvalData(activations=torch.zeros(3, 16), token_mask=MASK)
    with pytest.raises(ValueError, match=r"documents has shape \(2, 5\), but tokens has \(4, 5\)"):
        replace(data, documents=TOKENS[:2])
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        replace(data, batch_size=0)


def test_contexts_are_the_tokens_with_their_mask(pair, tmp_path):
    data = slc.EvalData(pair=pair, tokens=TOKENS, token_mask=MASK)
    everything = replace(data, token_mask=None).contexts
    assert torch.equal(everything[0], TOKENS)
    assert everything[1].all()
    hook_name = "blocks.0.hook_resid_post"
    cache = slc.cache_activations(tmp_path, pair, TOKENS, hook_name, token_mask=MASK, prompts_per_shard=2)
    for tokens, mask in (data.contexts, slc.EvalData(activations=cache).contexts):
        assert torch.equal(tokens, TOKENS)
        assert torch.equal(mask, MASK)


def test_contexts_that_are_unknown_or_empty_are_refused(pair):
    with pytest.raises(ValueError, match="come without their tokens"):
        _ = slc.EvalData(activations=torch.zeros(3, 16)).contexts
    with pytest.raises(ValueError, match="token_mask leaves out all 20 tokens"):
        _ = slc.EvalData(pair=pair, tokens=TOKENS, token_mask=torch.zeros_like(MASK)).contexts


def test_the_tokenizer_is_the_pairs_unless_given():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-null")
    assert slc.EvalData(pair=pair, tokens=TOKENS).tokenizer is pair.tokenizer
    assert slc.EvalData(pair=pair, tokens=TOKENS, tokenizer="mine").tokenizer == "mine"
    assert slc.EvalData(activations=torch.zeros(3, 16)).tokenizer is None


def test_kept_activations_are_the_models_and_serve_every_analysis_without_another_pass(pair, monkeypatch):
    hook_name = "blocks.0.hook_resid_post"
    tokens = some_tokens(5, 8)
    mask = torch.ones_like(tokens, dtype=torch.bool)
    mask[2, 5:] = False
    data = slc.EvalData(pair=pair, tokens=tokens, token_mask=mask, batch_size=2)
    expected = torch.cat(list(harvest(pair, tokens, hook_name, 2, mask)))
    kept = data.keep_activations(hook_name)
    monkeypatch.setattr(type(pair), "activations", lambda *args, **kwargs: pytest.fail("the models ran again"))
    for n_skipped in (0, 1, 3):
        rest = torch.cat([expected[:0], *HarvestedActivations(kept, hook_name).after(n_skipped)])
        assert torch.equal(rest, expected[int(mask[: 2 * n_skipped].sum()) :])
    groups = TokenGroups(tokens % 2, ("even", "odd"))
    assert kept.with_groups(groups).groups is groups
    assert torch.equal(torch.cat(list(HarvestedActivations(kept.with_groups(groups), hook_name).after(0))), expected)
    with pytest.raises(pytest.fail.Exception, match="ran again"):
        list(HarvestedActivations(replace(kept, tokens=tokens.flip(0)), hook_name).after(0))
    with pytest.raises(ValueError, match="given already"):
        slc.EvalData(activations=expected).keep_activations(hook_name)
