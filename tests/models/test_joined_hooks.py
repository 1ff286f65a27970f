"""Several hooks read as one: the activations of plain TransformerLens, in one forward pass of each model."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations import harvest
from tests.models.small_models import random_hooked_transformer, some_tokens

HOOKS = ["blocks.0.hook_mlp_out", "blocks.1.hook_resid_pre"]
JOINED = "+".join(HOOKS)


def models(n=2):
    """Of different widths, because nothing may take the borders of one model for another's."""
    widths = (16, 24)
    return [random_hooked_transformer(width, seed=seed) for seed, width in enumerate(widths[:n], start=1)]


def plainly_read(members, tokens):
    return [[model.run_with_cache(tokens)[1][hook] for hook in HOOKS] for model in members]


@pytest.mark.parametrize("n", [1, 2])
def test_joined_hooks_are_each_models_activations_side_by_side(n):
    members, tokens = models(n), some_tokens()
    pair = slc.HookedModelPair(*members)
    expected = torch.cat([part for parts in plainly_read(members, tokens) for part in parts], dim=-1)
    assert torch.equal(pair.activations(tokens, JOINED), expected)
    layout = pair.layout_at(JOINED)
    assert (layout.d_models, layout.hook_names) == (((16, 16, 24, 24) if n == 2 else (16, 16)), tuple(HOOKS))
    assert torch.equal(torch.cat(list(harvest(pair, tokens, JOINED, batch_size=1))), expected.flatten(0, 1))
    # A pass that is told to stop after the first of the hooks, as SAELens does, goes on to the last.
    _, cache = pair.run_with_cache(tokens, names_filter=JOINED, stop_at_layer=1)
    assert torch.equal(cache[JOINED], expected)


def test_a_model_runs_once_and_stops_after_the_last_hook(monkeypatch):
    members, ran = models(), []
    for name, model in zip(("base", "chat"), members, strict=True):
        for i, block in enumerate(model.blocks):
            block.register_forward_hook(lambda *_, place=(name, i): ran.append(place))
    slc.HookedModelPair(*members).activations(some_tokens(), JOINED)
    assert len(members[0].blocks) > 1
    assert ran == [(name, i) for name in ("base", "chat") for i in (0, 1)]


def test_a_hook_function_edits_all_hooks_from_one_reading():
    members, tokens = models(), some_tokens()
    pair, seen = slc.HookedModelPair(*members), []

    def edit(stacked, hook):
        seen.append(stacked)
        return stacked.flip(0) * 1.5

    logits = pair.run_with_hooks(tokens, fwd_hooks=[(JOINED, edit)])
    read = plainly_read(members, tokens)
    assert len(seen) == 1
    for m, model in enumerate(members):
        written = [part.flip(0) * 1.5 for part in read[m]]
        hooks = [(hook, lambda _, hook, value=value: value) for hook, value in zip(HOOKS, written, strict=True)]
        expected = model.run_with_hooks(tokens, fwd_hooks=hooks)
        assert torch.allclose(logits[:, :, m], expected, atol=1e-6)
    assert torch.equal(pair(tokens), slc.HookedModelPair(*members)(tokens))  # nothing stays


def test_a_pattern_of_names_leaves_joined_hooks_out_whenever_they_were_used():
    pair, tokens = slc.HookedModelPair(*models()), some_tokens()
    before = set(pair.run_with_cache(tokens)[1])
    pair.activations(tokens, JOINED)
    seen = []
    with pair.hooks(fwd_hooks=[(lambda name: "hook_mlp_out" in name, lambda x, hook: seen.append(hook.name))]):
        pair(tokens)
    assert JOINED not in seen
    assert "blocks.0.hook_mlp_out" in seen
    assert set(pair.run_with_cache(tokens)[1]) == before


def test_an_edit_before_joined_hooks_is_seen_by_them():
    pair, tokens, seen = slc.HookedModelPair(*models()), some_tokens(), []
    earlier = "blocks.0.hook_resid_pre"
    hooks = [(JOINED, lambda x, hook: seen.append(x)), (earlier, lambda x, hook: x * 0)]
    pair.run_with_hooks(tokens, fwd_hooks=hooks)
    with pair.hooks(fwd_hooks=hooks[1:]):
        expected = pair.activations(tokens, JOINED)
    assert torch.equal(seen[0], expected)
    assert not torch.equal(expected, pair.activations(tokens, JOINED))


@pytest.mark.parametrize(
    ("hook_name", "message"),
    [
        ("blocks.0.hook_mlp_out+blocks.0.hook_mlp_out", "joins a hook with itself"),
        ("+blocks.0.hook_mlp_out", "hook ''"),
    ],
)
def test_hooks_that_cannot_be_joined_are_refused(hook_name, message):
    with pytest.raises(ValueError, match=message):
        slc.HookedModelPair(*models()).activations(some_tokens(), hook_name)
