"""A hook per model, for models of different depth: each model is read and edited as plain TransformerLens does it."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations import harvest
from sae_lens_crosscoder.activations.cache.writer import cache_activations
from tests.models.small_models import random_hooked_transformer, some_tokens

HOOKS = ("blocks.0.hook_resid_post", "blocks.3.hook_mlp_out")
HOOK = "|".join(HOOKS)
WIDTHS, DEPTHS = (16, 24), (2, 5)


@pytest.fixture(scope="module")
def members():
    pairs = zip(WIDTHS, DEPTHS, strict=True)
    return [random_hooked_transformer(width, seed=1, n_layers=depth) for width, depth in pairs]


@pytest.fixture(scope="module")
def expected(members):
    """Each model's own run, with its own hook."""
    models = zip(members, HOOKS, strict=True)
    return torch.cat([model.run_with_cache(some_tokens())[1][hook] for model, hook in models], dim=-1)


def test_every_model_is_read_at_its_own_hook(members, expected, tmp_path):
    pair, tokens = slc.HookedModelPair(*members), some_tokens()
    assert torch.equal(pair.activations(tokens, HOOK), expected)
    assert torch.equal(torch.cat(list(harvest(pair, tokens, HOOK, batch_size=1))), expected.flatten(0, 1))
    layout = pair.layout_at(HOOK)
    assert (layout.d_models, layout.hook_names, layout.is_pair) == (WIDTHS, (), True)
    for stop in (None, 1, 2):  # SAELens derives it from the first of the hooks
        options = {} if stop is None else {"stop_at_layer": stop}
        assert torch.equal(pair.run_with_cache(tokens, names_filter=HOOK, **options)[1][HOOK], expected)
    cache = cache_activations(tmp_path, pair, tokens, HOOK, dtype="float32")
    assert cache.manifest.hook_name == HOOK
    assert cache.layout.d_models == WIDTHS
    assert torch.equal(torch.cat(list(cache)), expected.flatten(0, 1))


@pytest.mark.parametrize("lean", [True, False])
@pytest.mark.parametrize("order", [1, -1])  # the deeper model last, and first
def test_every_model_stops_after_its_own_hook(members, lean, order):
    ran = []
    handles = [
        block.register_forward_hook(lambda *_, place=(m, i): ran.append(place))
        for m, model in enumerate(members)
        for i, block in enumerate(model.blocks)
    ]
    with torch.set_grad_enabled(not lean):
        slc.HookedModelPair(*members[::order]).activations(some_tokens(), "|".join(HOOKS[::order]))
    for handle in handles:
        handle.remove()
    assert sorted(ran) == [(0, 0), (1, 0), (1, 1), (1, 2), (1, 3)]


def test_an_edit_is_that_of_plain_hooks_of_each_model(members, expected):
    pair, tokens = slc.HookedModelPair(*members), some_tokens()
    logits = pair.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda stacked, hook: stacked.flip(0) * 1.5)])
    parts = expected.split(list(WIDTHS), dim=-1)
    for m, (model, hook) in enumerate(zip(members, HOOKS, strict=True)):
        plain = model.run_with_hooks(tokens, fwd_hooks=[(hook, lambda _, hook, m=m: parts[m].flip(0) * 1.5)])
        torch.testing.assert_close(logits[:, :, m], plain)
    assert torch.equal(pair(tokens), slc.HookedModelPair(*members)(tokens))  # nothing stays


def test_an_earlier_edit_is_seen(members):
    pair, tokens, seen = slc.HookedModelPair(*members), some_tokens(), []
    earlier = ("blocks.0.hook_resid_pre|blocks.2.hook_resid_pre", lambda x, hook: x * 0)
    pair.run_with_hooks(tokens, fwd_hooks=[(HOOK, lambda x, hook: seen.append(x)), earlier])
    for m, (model, hook) in enumerate(zip(members, HOOKS, strict=True)):
        with model.hooks(fwd_hooks=[(earlier[0].split("|")[m], lambda x, hook: x * 0)]):
            plain = model.run_with_cache(tokens)[1][hook]
        torch.testing.assert_close(seen[0].split(list(WIDTHS), dim=-1)[m], plain)


def test_hooks_that_the_models_reach_in_different_orders_are_refused(members):
    pair = slc.HookedModelPair(*members)
    crossed = ["blocks.0.hook_resid_post|blocks.3.hook_resid_post", "blocks.1.hook_resid_post|blocks.0.hook_resid_post"]
    hooks = [(name, lambda x, hook: x * 2) for name in crossed]
    with pytest.raises(ValueError, match=r"reach the hooks .* in different orders"):
        pair.run_with_hooks(some_tokens(), fwd_hooks=hooks)


def test_a_pattern_of_names_leaves_a_hook_per_model_out(members):
    pair, tokens = slc.HookedModelPair(*members), some_tokens()
    before = set(pair.run_with_cache(tokens)[1])
    pair.activations(tokens, HOOK)
    assert set(pair.run_with_cache(tokens)[1]) == before


@pytest.mark.parametrize(
    ("hook_name", "message"),
    [
        ("|".join((*HOOKS, HOOKS[0])), "names 3 hooks for 2 models. Name one hook per model"),
        (f"{HOOKS[0]}|blocks.7.hook_mlp_out", "no common hook 'blocks.7.hook_mlp_out'"),
        (f"{HOOKS[0]}+blocks.0.hook_mlp_out|{HOOKS[1]}", "names several hooks per model"),
        (f"{HOOKS[0]}|blocks.3.attn.hook_z", "split by attention head"),
    ],
)
def test_hooks_that_do_not_fit_the_models_are_refused(members, hook_name, message, tmp_path):
    pair = slc.HookedModelPair(*members)
    with pytest.raises(ValueError, match=message):
        pair.activations(some_tokens(), hook_name)
    with pytest.raises(ValueError, match=r"names 3 hooks for 2|no common hook|several hooks per|flattening a head"):
        cache_activations(tmp_path / "cache", pair, some_tokens(), hook_name)
