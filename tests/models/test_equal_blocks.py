"""Laws of lower layers with equal weights: they run once, with the values of two passes, and only while equal."""

import copy

import pytest
import torch
from sae_lens.load_model import HookedProxyLM
from transformer_lens import HookedTransformer

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.cache import writer
from sae_lens_crosscoder.models import lean_pass, lower_layers
from sae_lens_crosscoder.models.equal_blocks import blocks_of, equal_blocks
from sae_lens_crosscoder.models.loading import add_jitter
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from sae_lens_crosscoder.models.unwrapped_pass import called_block
from tests.models.small_models import N_LAYERS, gemma2, llama, some_tokens

KINDS = ("HookedTransformer", "TransformerBridge", "AutoModelForCausalLM")
TOKENS = some_tokens(4, 12)


def jittered_from(model, block):
    """A copy with noise on the blocks from `block` on."""
    is_proxy = isinstance(model, HookedProxyLM)  # a deep copy of one calls the first one's hook points
    second = HookedProxyLM(llama(), tiny_tokenizer()) if is_proxy else copy.deepcopy(model)
    add_jitter(torch.nn.ModuleList(blocks_of(second)[block:]), 0.1)
    return second


def hook(kind, layer):
    return f"model.layers.{layer}" if kind == "AutoModelForCausalLM" else f"blocks.{layer}.hook_resid_post"


@pytest.fixture(scope="module")
def bases():
    tiny = slc.HookedModelPair.from_pretrained("tiny-base").base
    bridge = slc.HookedModelPair(gemma2(), tokenizer=tiny_tokenizer()).base
    return dict(zip(KINDS, (tiny, bridge, HookedProxyLM(llama(), tiny_tokenizer())), strict=True))


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def without_sharing(pair, hook_name, monkeypatch):
    with monkeypatch.context() as patch:
        for module in (lower_layers, lean_pass):
            patch.setattr(module, "shared_blocks", lambda models: [[] for _ in models])
        return pair.activations(TOKENS, hook_name)


@pytest.fixture
def passes(monkeypatch):
    """The activations at a hook, and how many blocks each model ran for them."""
    ran = []
    lean = lean_pass._block

    def counted(block, *args, **kwargs):
        ran.append(block)
        return lean(block, *args, **kwargs)

    monkeypatch.setattr(lean_pass, "_block", counted)

    def counted_forward(block, forward, *args, **kwargs):
        ran.append(block)
        return forward(*args, **kwargs)

    def passes_of(pair, hook_name):
        ran.clear()
        handles = []
        if not isinstance(pair.base, HookedTransformer):
            for block in {block for model in pair.members for block in blocks_of(model)}:
                part = first_part(block)
                wrapped = part.forward
                vars(part)["forward"] = lambda *args, _f=wrapped, _b=block, **kwargs: (
                    ran.append(_b),
                    _f(*args, **kwargs),
                )[1]
                handles.append(part)
        found = pair.activations(TOKENS, hook_name)
        for part in handles:
            vars(part).pop("forward", None)
        return found, tuple(sum(block in set(blocks_of(model)) for block in ran) for model in pair.members)

    return passes_of


def first_part(block):
    """A module that a block runs once, whether the bridge runs it or Hugging Face's layer."""
    return called_block(block.input_layernorm)


def embedding_of(model):
    return model.embed._original_component if hasattr(model, "embed") else model.model.get_input_embeddings()


@pytest.mark.parametrize("kind", KINDS)
class TestRunOnce:
    def test_with_the_values_of_two_passes(self, bases, kind, passes, monkeypatch):
        pair = slc.HookedModelPair(bases[kind], jittered_from(bases[kind], 2))
        for layer in range(N_LAYERS):
            expected = without_sharing(pair, hook(kind, layer), monkeypatch)
            found, blocks = passes(pair, hook(kind, layer))
            assert torch.equal(found, expected)
            assert blocks == (layer + 1, max(0, layer - 1))
            assert torch.equal(*found.chunk(2, dim=-1)) == (layer < 2)

    def test_of_a_model_beside_itself_in_one_pass(self, bases, kind, passes):
        found, blocks = passes(slc.HookedModelPair(bases[kind], bases[kind]), hook(kind, 1))
        assert sum(blocks) / 2 == 2  # the same blocks are counted for both
        assert torch.equal(*found.chunk(2, dim=-1))

    def test_after_a_change_of_the_weights_no_longer(self, bases, kind, passes):
        second = jittered_from(bases[kind], 2)
        pair = slc.HookedModelPair(bases[kind], second)
        assert passes(pair, hook(kind, 1))[1] == (2, 0)
        next(blocks_of(second)[0].parameters()).data.mul_(1.5)  # behind autograd's back
        found, blocks = passes(pair, hook(kind, 1))
        assert blocks == (2, 2)
        assert not torch.equal(*found.chunk(2, dim=-1))

    def test_not_with_another_embedding(self, bases, kind, passes):
        second = jittered_from(bases[kind], 2)
        embedding_of(second).weight.data.mul_(1.5) if kind != "HookedTransformer" else second.embed.W_E.mul_(1.5)
        assert passes(slc.HookedModelPair(bases[kind], second), hook(kind, 1))[1] == (2, 2)

    def test_not_under_a_hook_of_one_model(self, bases, kind, monkeypatch):
        pair = slc.HookedModelPair(bases[kind], jittered_from(bases[kind], 2))
        plain = pair.activations(TOKENS, hook(kind, 2))
        with pair.chat.hooks(fwd_hooks=[(hook(kind, 0), lambda x, hook: 0 * x)]):
            found = pair.activations(TOKENS, hook(kind, 2))
            expected = without_sharing(pair, hook(kind, 2), monkeypatch)
        assert torch.equal(found, expected)
        assert torch.equal(found.chunk(2, dim=-1)[0], plain.chunk(2, dim=-1)[0])
        assert not torch.equal(found.chunk(2, dim=-1)[1], plain.chunk(2, dim=-1)[1])


def test_three_models_share_as_many_blocks_as_each_has_in_common_with_the_first(bases, passes):
    base = bases["HookedTransformer"]
    trio = slc.HookedModelPair(base, jittered_from(base, 1), jittered_from(base, 2))
    assert [len(blocks) for blocks in equal_blocks(trio.members)] == [2, 1, 2]
    assert passes(trio, hook("HookedTransformer", 2))[1] == (3, 2, 1)


def test_nothing_is_shared_while_gradients_are_recorded(bases):
    base = bases["HookedTransformer"]
    with torch.enable_grad():
        assert not any(equal_blocks([base, copy.deepcopy(base)]))
    assert all(equal_blocks([base, copy.deepcopy(base)]))


def test_models_that_read_other_tokens_at_the_same_place_share_nothing(bases):
    lower = lower_layers.LowerPass(equal_blocks([bases["HookedTransformer"]] * 2))
    reads = [lower.run(m, lambda tokens, **_: (None, {"x": tokens}), TOKENS + m, ["x"])[1]["x"] for m in (0, 1)]
    assert torch.equal(reads[1], TOKENS + 1)


def test_a_cache_is_that_of_two_passes(bases, passes, tmp_path, monkeypatch):
    base = bases["HookedTransformer"]
    pair = slc.HookedModelPair(base, jittered_from(base, 2))
    options = {"dtype": "float32", "batch_size": 2, "prompts_per_shard": 2}
    shared = writer.cache_activations(tmp_path / "shared", pair, TOKENS, hook("HookedTransformer", 2), **options)
    found = torch.cat(list(shared))
    expected = without_sharing(pair, hook("HookedTransformer", 2), monkeypatch).flatten(0, 1)
    assert torch.equal(found, expected)
