"""Crosscoders spliced into a pair do what SAELens's own methods do with the SAEs of single models."""

import itertools

import pytest
import torch
from sae_lens import HookedSAETransformer, JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.load_model import HookedProxyLM

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from tests.causal.conftest import random_crosscoder
from tests.models.small_models import llama, random_hooked_transformer, some_tokens
from tests.reference import plain_hooks

pytestmark = pytest.mark.usefixtures("unchecked_types")
D, D_SAE, HOOK = 16, 8, "blocks.0.hook_resid_post"
CLASSES = {"HookedTransformer": HOOK, "TransformerBridge": HOOK, "HookedProxyLM": "model.layers.0"}
TOKENS = some_tokens(n_prompts=2, n_pos=6)


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def crosscoder_for(pair, hook_name):
    crosscoder = random_crosscoder(pair.layout_at(hook_name).d_models, threshold=0.1, dtype="float32", d_sae=D_SAE)
    crosscoder.b_enc.data *= 0.3
    crosscoder.cfg.metadata.hook_name = hook_name
    return crosscoder


@pytest.fixture(scope="module")
def pairs():
    models = [random_hooked_transformer(D, seed=seed) for seed in (1, 2)]
    proxies = [HookedProxyLM(llama(noise=noise), tiny_tokenizer()).eval() for noise in (0.0, 0.05)]
    return {
        "HookedTransformer": slc.HookedModelPair(*models),
        "TransformerBridge": slc.HookedModelPair(llama(), llama(noise=0.05), tokenizer=tiny_tokenizer()),
        "HookedProxyLM": slc.HookedModelPair(*proxies),
    }


@pytest.fixture(params=CLASSES)
def spliced(request, pairs):
    pair = pairs[request.param]
    return pair, crosscoder_for(pair, CLASSES[request.param]), CLASSES[request.param]


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


def of_one_model(crosscoder, m):
    """One model's part of a crosscoder whose latents each read and write one model, as an SAE of that model."""
    half = slice(m * D_SAE // 2, (m + 1) * D_SAE // 2)
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=D, d_sae=D_SAE // 2, apply_b_dec_to_input=False))
    weights = {
        "W_enc": crosscoder.encoders[m].T[:, half],
        "W_dec": crosscoder.decoders[m][half],
        "b_enc": crosscoder.b_enc[half],
        "b_dec": crosscoder.decoder_biases[m],
        "threshold": crosscoder.threshold[half],
    }
    sae.load_state_dict({name: tensor.detach().clone() for name, tensor in weights.items()})
    sae.cfg.metadata.hook_name = HOOK
    return sae


def with_saes(model):
    """The same model as SAELens's class."""
    again = HookedSAETransformer(model.cfg).eval()
    again.load_state_dict(model.state_dict(), strict=False)
    return again


@pytest.mark.parametrize(
    ("use_error_term", "excluded"), itertools.product((None, False, True), (False, [3, 7, 11, 40]))
)
def test_two_saes_side_by_side_are_each_spliced_as_by_saelens(pairs, use_error_term, excluded):
    """Outputs, losses, caches under the same names, and hooks at the latents."""
    pair = pairs["HookedTransformer"]
    crosscoder = crosscoder_for(pair, HOOK)
    crosscoder.W_enc.data[:D, D_SAE // 2 :] = crosscoder.W_enc.data[D:, : D_SAE // 2] = 0
    crosscoder.W_dec.data[D_SAE // 2 :, :D] = crosscoder.W_dec.data[: D_SAE // 2, D:] = 0
    tokens = TOKENS.clone()
    tokens[0, 2], tokens[1, 5] = 7, 40
    options = {"use_error_term": use_error_term, "exclude_special_tokens": excluded}
    acts = f"{HOOK}.hook_sae_acts_post"

    def zero_first(f, hook):
        return f.index_fill(-1, torch.tensor([0, f.shape[-1] // 2] if f.shape[-1] == D_SAE else [0]), 0.0)

    ours, cache = pair.run_with_cache_with_saes(tokens, saes=crosscoder, **options)
    losses = pair.run_with_saes(tokens, saes=[crosscoder], return_type="loss", **options)
    with pair.saes(crosscoder, **options):
        edited = pair.run_with_hooks(tokens, fwd_hooks=[(acts, zero_first)])
    for m, model in enumerate(pair.members):
        host, sae = with_saes(model), of_one_model(crosscoder, m)
        theirs, their_cache = host.run_with_cache_with_saes(tokens, saes=sae, **options)
        close(ours[:, :, m], theirs)
        close(losses[m], host.run_with_saes(tokens, saes=[sae], return_type="loss", **options))
        half = slice(m * D_SAE // 2, (m + 1) * D_SAE // 2)
        close(cache[acts][..., half], their_cache[acts])
        close(cache[f"{HOOK}.hook_sae_input"][..., m * D : (m + 1) * D], their_cache[f"{HOOK}.hook_sae_input"])
        close(cache[HOOK].split(D, dim=-1)[m], their_cache[f"{HOOK}.hook_sae_output"])
        with host.saes(sae, **options):
            close(edited[:, :, m], host.run_with_hooks(tokens, fwd_hooks=[(acts, zero_first)]))


def test_a_spliced_pair_is_the_patch_that_reconstructs(spliced):
    pair, crosscoder, hook_name = spliced
    ours = pair.run_with_saes(TOKENS, saes=crosscoder)
    with slc.patched(pair, crosscoder, None, "reconstruct"):
        close(ours, pair(TOKENS))
    weights = {name: tensor.detach() for name, tensor in crosscoder.state_dict().items()}
    patch = dict(crosscoder=weights, latents=list(range(D_SAE)), how="reconstruct", models=(0, 1))
    (expected,) = plain_hooks.logits(pair.members, [TOKENS], hook_name, [[patch]])
    close(ours, expected)
    assert (ours - pair(TOKENS)).abs().max() > 1e-2


def test_an_edited_latent_under_the_error_term_is_the_patch_that_ablates(spliced):
    pair, crosscoder, hook_name = spliced
    close(pair.run_with_saes(TOKENS, saes=crosscoder, use_error_term=True), pair(TOKENS))
    hooks = [(f"{hook_name}.hook_sae_acts_post", lambda f, hook: f.index_fill(-1, torch.tensor([3]), 0.0))]
    edited = pair.run_with_hooks_with_saes(TOKENS, saes=crosscoder, use_error_term=True, fwd_hooks=hooks)
    with slc.patched(pair, crosscoder, [3], "ablate"):
        close(edited, pair(TOKENS))
    assert crosscoder.use_error_term is False


def test_an_attached_crosscoder_stays_until_it_is_reset_and_a_block_gives_back_what_was_there(spliced):
    pair, crosscoder, hook_name = spliced
    plain, names = pair(TOKENS), list(pair.hook_dict)
    other = crosscoder_for(pair, hook_name)
    other.W_dec.data *= 0.5
    pair.add_sae(crosscoder)
    attached = pair(TOKENS)
    assert pair.acts_to_saes == {hook_name: crosscoder}
    with pair.saes(other, use_error_term=False):
        assert not torch.equal(pair(TOKENS), attached)
        assert pair.acts_to_saes == {hook_name: other}
    assert torch.equal(pair(TOKENS), attached)
    with pytest.raises(ZeroDivisionError), pair.saes(other):
        raise ZeroDivisionError
    assert torch.equal(pair(TOKENS), attached)
    pair.reset_saes()
    assert torch.equal(pair(TOKENS), plain)
    assert list(pair.hook_dict) == names
    assert pair.run_with_saes(TOKENS, saes=other, reset_saes_end=False) is not None
    assert pair.acts_to_saes == {hook_name: other}
    pair.reset_saes(hook_name)
    assert pair.acts_to_saes == {}


def test_the_cache_of_all_hooks_holds_the_saes_too(spliced):
    pair, crosscoder, hook_name = spliced
    _, cache = pair.run_with_cache_with_saes(TOKENS, saes=crosscoder)
    stacked = pair.activations(TOKENS, hook_name)
    close(cache[f"{hook_name}.hook_sae_input"], stacked)
    close(cache[f"{hook_name}.hook_sae_acts_post"], crosscoder.encode(stacked))
    close(cache[hook_name], crosscoder.decode(crosscoder.encode(stacked)))


def test_a_pair_writes_under_its_splice_with_caches_too(spliced):
    pair, crosscoder, _ = spliced
    with pair.saes(crosscoder):
        written = slc.causal.generate_patched(pair, TOKENS, max_new_tokens=3, end=-1)
        tokens = TOKENS
        for _ in range(3):
            tokens = torch.cat([tokens, pair(tokens)[:, -1:, -1].argmax(dim=-1)], dim=1)
    assert torch.equal(written, tokens[:, -3:])


def test_tokens_that_dominate_are_left_alone(pairs):
    pair = pairs["HookedTransformer"]
    crosscoder = crosscoder_for(pair, HOOK)
    norms = crosscoder.layout.norms(pair.activations(TOKENS, HOOK)).flatten(0, 1)
    crosscoder.cfg.metadata.max_norms = norms.median(dim=0).values.tolist()
    used = crosscoder.trained_limits.ordinary(pair.activations(TOKENS, HOOK))
    assert used.any()
    assert not used.all()
    _, cache = pair.run_with_cache_with_saes(TOKENS, saes=crosscoder, names_filter=[HOOK])
    stacked = pair.activations(TOKENS, HOOK)
    assert torch.equal(cache[HOOK][~used], stacked[~used])
    with slc.patched(pair, crosscoder, None, "reconstruct"):
        close(pair.run_with_cache(TOKENS, names_filter=[HOOK])[1][HOOK], cache[HOOK])


def test_an_sae_of_another_width_or_hook_is_refused(pairs):
    pair = pairs["HookedTransformer"]
    with pytest.raises(
        ValueError, match=r"sae reads 16 numbers, but the models have 32 .*SAE of one model belongs on pair\.base"
    ):
        pair.add_sae(of_one_model(crosscoder_for(pair, HOOK), 0))
    crosscoder = crosscoder_for(pair, HOOK)
    crosscoder.cfg.metadata.hook_name = "blocks.9.hook_resid_post"
    with pytest.raises(ValueError, match="no common hook"):
        pair.add_sae(crosscoder)
    assert pair.acts_to_saes == {}
