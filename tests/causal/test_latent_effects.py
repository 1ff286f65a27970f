"""Laws of single latents: KL and logits from hooks by hand, and a direct attribution through each host's own norm."""

import pytest
import torch

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import Responses
from sae_lens_crosscoder.causal.forward import response_batches
from tests.causal.conftest import D_MODEL, HOOK, LATENTS, thresholds
from tests.causal.test_effects import edited_activation, kl_by_loops
from tests.crosscoders.conftest import as_lists
from tests.models.small_models import gemma2, random_hooked_transformer, save_pair
from tests.reference.causal import activations


@pytest.fixture
def response(case):
    response = torch.zeros_like(case.tokens, dtype=torch.bool)
    response[0, 1:] = response[1, 2:4] = response[2, 11:] = True
    return response


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_kl_and_logits_are_those_of_hooks_by_hand(case, response, batch_size):
    table = slc.causal.latent_effects(
        case.crosscoder, case.pair, Responses(case.tokens, response), LATENTS, k=3, batch_size=batch_size
    )
    assert table.index.tolist() == LATENTS
    n_tokens = int(response.sum())
    base, chat = case.activation(0), case.activation(1)
    none = kl_by_loops(case, base, response)[0].sum().item()
    own, weights = case.pair.chat(case.tokens), as_lists(case.crosscoder)
    for j, row in table.iterrows():
        added = kl_by_loops(case, edited_activation(case, "add", (0,), 0, [j]), response)[0].sum().item()
        without = edited_activation(case, "ablate", (1,), 1, [j])
        removed = kl_by_loops(case, without, response)[0].sum().item()
        assert row.kl_change_added == pytest.approx((added - none) / n_tokens, abs=1e-5)
        assert row.kl_change_removed == pytest.approx(removed / n_tokens, abs=1e-5)
        patched, changes = case.logits(1, without), []
        for c, t in response.nonzero().tolist():
            h = [part[c, t - 1].tolist() for part in (base, chat)]
            if activations(h, weights, thresholds(case.crosscoder))[j] > 0:
                changes.append(own[c, t - 1] - patched[c, t - 1])
        assert row.n_active == len(changes)
        if changes:
            change = torch.stack(changes).mean(dim=0)
            for column, largest in (("raises", True), ("lowers", False)):
                expected = change.topk(3, largest=largest).values.tolist()
                assert [value for _, value in row[column]] == pytest.approx(expected, abs=1e-4)
        else:
            assert row.raises == row.lowers == []
    assert ((table.n_active > 0) & (table.n_active < n_tokens)).any()


def test_later_layers_run_for_several_latents_at_once_and_only_where_one_is_on(case, monkeypatch):
    response = torch.arange(12).expand(3, 12) == 2  # so that later tokens do not matter
    ran = []

    def watched(model, residual, hook_name, tokens, *args, **kwargs):
        ran.append(residual.shape[:2].numel())
        return slc.causal.resume_from(model, residual, hook_name, tokens, *args, **kwargs)

    monkeypatch.setattr(response_batches, "resume_from", watched)
    slc.causal.latent_effects(case.crosscoder, case.pair, Responses(case.tokens, response), range(10), batch_size=4)
    f = case.crosscoder.encode(case.pair.activations(case.tokens, HOOK))[:, :2]
    n_on = sum(bool((f[c, :, j] > 0).any()) for c in range(3) for j in range(10))
    assert 4 < n_on < 3 * 10
    parts = [4] * (n_on // 4) + [n_on % 4] * (n_on % 4 > 0)
    assert ran == [3, 3, *parts, *parts]  # the chat model as it is, the base activation, latents added and removed


def test_a_direct_attribution_goes_through_the_final_norms_gain(tmp_path):
    directions = torch.randn(3, D_MODEL, generator=torch.Generator().manual_seed(0))
    hooked = random_hooked_transformer(D_MODEL, seed=1)
    gain = torch.rand(D_MODEL, generator=torch.Generator().manual_seed(1)) + 0.5
    with torch.no_grad():
        hooked.ln_final.w.copy_(gain)
        hooked.ln_final.b.copy_(gain.flip(0))
    centred = directions - directions.mean(dim=-1, keepdim=True)
    expected = (centred * gain) @ hooked.W_U
    torch.testing.assert_close(slc.causal.logit_attribution(hooked, directions), expected, rtol=1e-3, atol=1e-4)
    bridge = slc.HookedModelPair.from_pretrained(
        *save_pair(tmp_path, gemma2), model_class_name="TransformerBridge"
    ).chat
    theirs = gemma2(noise=0.02)  # whose norms do not centre, and hold the gain minus 1
    expected = (directions * (1 + theirs.model.norm.weight)) @ theirs.lm_head.weight.T
    torch.testing.assert_close(slc.causal.logit_attribution(bridge, directions), expected, rtol=1e-3, atol=1e-4)


def test_tokens_are_named_and_the_strongest_come_first():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    unembedded = pair.chat.W_U - pair.chat.W_U.mean(dim=0, keepdim=True)
    sorry = pair.tokenizer.convert_tokens_to_ids("sorry")
    scores = slc.causal.logit_attribution(pair.chat, unembedded[:, [sorry]].T)[0]
    assert int(scores.argmax()) == sorry


def test_no_and_unknown_latents_are_refused_before_anything_runs(case, response):
    with pytest.raises(ValueError, match="latent_ids is empty"):
        slc.causal.latent_effects(case.crosscoder, case.pair, Responses(case.tokens, response), [])
    with pytest.raises(ValueError, match="There is no latent 10"):
        slc.causal.latent_effects(case.crosscoder, case.pair, Responses(case.tokens, response), [10])
