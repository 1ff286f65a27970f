"""Laws of localisation: shares are those of plain hooks, a changed block is found, padding changes nothing."""

import copy

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import locate_difference, residual_hooks, share_brought_back, steering_effects
from tests.causal.conftest import gpt2
from tests.models.small_models import gemma2, random_hooked_transformer
from tests.reference import localisation as reference

LENGTHS = (7, 4, 9)
HOOKS = tuple(f"blocks.{block}.hook_resid_post" for block in range(4))


def prompts(d_vocab=50, seed=3):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(2, d_vocab, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return tokens, mask


def with_system_prompt(n=5):
    """The prompts after the same first tokens."""
    tokens, mask = prompts()
    shared = torch.arange(2, 2 + n).expand(len(tokens), n)
    return torch.cat([shared, tokens], dim=1), torch.cat([torch.ones_like(shared, dtype=torch.bool), mask], dim=1)


def changed_block(model, block):
    """A copy of the model with other weights in one block's MLP."""
    chat = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in chat.blocks[block].mlp.named_parameters():
            if name.startswith("W"):
                parameter.add_(0.5 * torch.randn_like(parameter))
    return chat


@pytest.fixture(scope="module")
def pair():
    base = slc.models.load_tiny_model("tiny-base")
    return slc.HookedModelPair(base, changed_block(base, 2))


@pytest.fixture(scope="module")
def found(pair):
    return locate_difference(pair, *prompts(), HOOKS, batch_size=2)


def test_kl_and_what_patches_leave_are_those_of_plain_hooks(pair, found):
    tokens, _ = prompts()
    for i, length in enumerate(LENGTHS):
        prompt = tokens[i : i + 1, :length]
        before = reference.kl_left(pair.base, pair.chat, prompt, HOOKS[0], [])
        assert found.kl[i, :length].tolist() == pytest.approx(before, abs=1e-5)
        assert found.kl[i, length:].isnan().all()
        assert found.kl_last[i].item() == pytest.approx(before[-1], abs=1e-5)
        for h, hook in enumerate(HOOKS):
            everywhere = reference.kl_left(pair.base, pair.chat, prompt, hook, range(length))
            assert found.patched_all[h, i].item() == pytest.approx(everywhere[-1], abs=1e-5)
            assert found.patched_sum[h, i].item() == pytest.approx(sum(everywhere), abs=1e-4)
            at_last = reference.kl_left(pair.base, pair.chat, prompt, hook, [length - 1])
            assert found.patched_last[h, i].item() == pytest.approx(at_last[-1], abs=1e-5)
    assert found.kl_sum.tolist() == pytest.approx(found.kl.nan_to_num(0).sum(dim=1).tolist())


@pytest.mark.parametrize("leave_out", [0, 1])
def test_what_all_prompts_begin_with_runs_once_and_changes_nothing(pair, leave_out):
    tokens, mask = with_system_prompt()
    mask[:, :leave_out] = False
    together = locate_difference(pair, tokens, mask, HOOKS, batch_size=3)
    alone = locate_difference(pair, tokens, mask, HOOKS, batch_size=1)
    for name in ("kl", "patched_last", "patched_all", "patched_sum"):
        first, second = (torch.nan_to_num(getattr(each, name), 7.0) for each in (together, alone))
        assert torch.allclose(first, second, atol=1e-4), name
    prompt = tokens[1:2, : 5 + LENGTHS[1]]
    if leave_out == 0:
        everywhere = reference.kl_left(pair.base, pair.chat, prompt, HOOKS[2], range(prompt.shape[1]))
        assert together.patched_sum[2, 1].item() == pytest.approx(sum(everywhere), abs=1e-4)


def test_shares_are_the_references(found):
    weights = torch.tensor([1.0, 0.0, 1.0])
    shares = share_brought_back(found.patched_last, found.kl_last, weights)
    for h in range(len(HOOKS)):
        left, before = (values[[0, 2]].tolist() for values in (found.patched_last[h], found.kl_last))
        assert shares[h].item() == pytest.approx(reference.share(left, before))
    resampled = share_brought_back(found.patched_last, found.kl_last, torch.stack([weights, 2 * weights]))
    assert resampled.shape == (2, len(HOOKS))
    assert torch.allclose(resampled[0], resampled[1])
    assert torch.allclose(resampled[0], shares)


def test_a_change_of_one_block_is_brought_back_from_that_block_on(found):
    weights = torch.ones(len(LENGTHS))
    everywhere = share_brought_back(found.patched_all, found.kl_last, weights)
    assert everywhere.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-4)
    over_all_tokens = share_brought_back(found.patched_sum, found.kl_sum, weights)
    assert over_all_tokens.tolist() == pytest.approx([0, 0, 1, 1], abs=1e-4)
    assert (found.difference[:2].nan_to_num(0) == 0).all()
    assert (found.difference[2:][:, prompts()[1]] > 0).all()


def test_norms_and_activations_are_the_models(pair, found):
    tokens, _ = prompts()
    for m, model in enumerate((pair.base, pair.chat)):
        activation = model.run_with_cache(tokens[:1, :7])[1][HOOKS[2]][0]
        assert torch.allclose(found.norms[2, 0, :7, m], activation.norm(dim=-1), rtol=1e-4)
        assert torch.allclose(found.last_activations[2, 0, m], activation[-1], atol=1e-4)
    assert found.norms[:, 0, 7:].isnan().all()
    assert torch.equal(found.differences_last(), found.last_activations[:, :, 1] - found.last_activations[:, :, 0])


def test_next_tokens_are_kept_at_the_last_tokens_and_where_the_kl_is_largest(pair):
    tokens, mask = prompts()
    found = locate_difference(pair, tokens, mask, HOOKS[:1], n_shown=4)
    shown = found.top_ids[..., 0, 0] >= 0
    assert shown[torch.arange(3), found.last].all()
    largest = found.kl.nan_to_num(-1).flatten().topk(4).indices
    assert shown.flatten()[largest].all()
    assert shown.sum() <= 4 + 3
    logits = pair.chat(tokens[1:2, :4])[0, -1]
    assert found.top_ids[1, 3, 1].tolist() == logits.topk(3).indices.tolist()
    assert torch.allclose(found.top_probs[1, 3, 1], logits.softmax(dim=-1).topk(3).values, atol=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "proxy"])
def test_every_host_gives_the_shares_of_full_passes(kind):
    models = [architecture(noise=noise) for architecture in [gpt2 if kind == "gpt2" else gemma2] for noise in (0, 0.05)]
    tokenizer = slc.models.tiny_tokenizer()
    if kind == "proxy":
        from sae_lens.load_model import HookedProxyLM

        models = [HookedProxyLM(model, tokenizer) for model in models]
    pair = slc.HookedModelPair(*models, tokenizer=tokenizer)
    tokens, mask = with_system_prompt()
    hooks = residual_hooks(pair)
    assert len(hooks) == 3
    found = locate_difference(pair, tokens, mask, hooks)
    for h, hook in enumerate(hooks):
        chat = pair.chat.run_with_cache(tokens, names_filter=[hook])[1][hook]
        with slc_replaced(pair.base, hook, chat):
            patched = pair.base(tokens, return_type="logits")
        left = [
            reference.kl(p, q)
            for p, q in zip(
                pair.chat(tokens, return_type="logits")[0, :12].tolist(), patched[0, :12].tolist(), strict=True
            )
        ]
        assert found.patched_all[h, 0].item() == pytest.approx(left[-1], abs=1e-5)
        assert found.patched_sum[h, 0].item() == pytest.approx(sum(left), abs=1e-4)
        base = pair.base.run_with_cache(tokens, names_filter=[hook])[1][hook].clone()
        base[0, 11] = chat[0, 11]
        with slc_replaced(pair.base, hook, base):
            at_last = pair.base(tokens, return_type="logits")[0, 11].tolist()
        expected = reference.kl(pair.chat(tokens, return_type="logits")[0, 11].tolist(), at_last)
        assert found.patched_last[h, 0].item() == pytest.approx(expected, abs=1e-5)


def slc_replaced(model, hook_name, value):
    return model.hooks(fwd_hooks=[(hook_name, lambda activation, hook: value)])


def test_models_with_more_ids_are_compared_over_the_common_ones():
    models = [random_hooked_transformer(16, seed=seed, d_vocab=d_vocab) for seed, d_vocab in ((1, 60), (2, 50))]
    found = locate_difference(slc.HookedModelPair(*models), *prompts(), HOOKS[:2])
    assert found.top_ids.max() < 50
    assert (found.patched_last >= 0).all()


def test_the_true_difference_as_a_direction_brings_back_what_the_patch_does(pair, found):
    tokens, _ = prompts()
    true = found.differences_last()[2]
    effects = steering_effects(pair, tokens, found.last, HOOKS[2], torch.cat([true, 0 * true[:1]]), batch_size=2)
    assert effects.kl_to_chat.diagonal().tolist() == pytest.approx(found.patched_last[2].tolist(), abs=1e-5)
    assert effects.kl_to_chat[3].tolist() == pytest.approx(found.kl_last.tolist(), abs=1e-5)
    assert effects.kl_from_base[3].tolist() == pytest.approx([0, 0, 0], abs=1e-6)
    assert effects.next_ids[3].tolist() == [
        pair.base(tokens[i : i + 1, :n])[0, -1].argmax() for i, n in enumerate(LENGTHS)
    ]


def test_hooks_are_in_order_and_thinned_from_the_last():
    pair = slc.HookedModelPair(*[slc.models.load_tiny_model(name) for name in ("tiny-base", "tiny-chat")])
    assert residual_hooks(pair) == HOOKS
    assert residual_hooks(pair, every=3) == (HOOKS[0], HOOKS[3])
    with pytest.raises(ValueError, match="every=0"):
        residual_hooks(pair, every=0)


def test_what_cannot_be_measured_is_refused():
    pair = slc.HookedModelPair(*[random_hooked_transformer(width, seed=1) for width in (16, 32)])
    tokens, mask = prompts()
    with pytest.raises(ValueError, match="Patching needs models of one width"):
        locate_difference(pair, tokens, mask, HOOKS[:1])
    with pytest.raises(ValueError, match="no common hook 'blocks"):
        locate_difference(pair, tokens, mask, ["blocks.9.hook_resid_post"])
    with pytest.raises(ValueError, match="all tokens of row 0"):
        locate_difference(pair_of_one_width(), tokens, mask & (torch.arange(3) > 0)[:, None], HOOKS[:1])
    with pytest.raises(ValueError, match="`hook_names` is empty"):
        locate_difference(pair, tokens, mask, [])


def pair_of_one_width():
    return slc.HookedModelPair(*[random_hooked_transformer(16, seed=seed) for seed in (1, 2)])
