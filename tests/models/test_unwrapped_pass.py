"""Laws of the unwrapped pass: a bridge's own values bit by bit, the bridge as it was, and only where it is safe."""

import pytest
import torch
from transformer_lens.model_bridge import TransformerBridge
from transformers import GPT2Config, GPT2LMHeadModel, Qwen3Config, Qwen3ForCausalLM

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models import unwrapped_pass
from sae_lens_crosscoder.models.tiny import tiny_tokenizer
from sae_lens_crosscoder.models.unwrapped_pass import can_read_unwrapped, run_unwrapped
from tests.models.small_models import _SHAPE, gemma2, llama, perturbed, some_tokens

HOOK = "blocks.1.hook_resid_post"
TOKENS = some_tokens(3, 12)


def qwen3(noise=0.0):
    config = Qwen3Config(**_SHAPE, vocab_size=len(tiny_tokenizer()))  # with SDPA, as loaded models have it
    return perturbed(Qwen3ForCausalLM, config, 0, noise)


def bridge(architecture):
    return slc.HookedModelPair(architecture(), tokenizer=tiny_tokenizer()).base


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


@pytest.mark.parametrize("architecture", [gemma2, llama, qwen3])
def test_activations_equal_the_bridges_own_bit_by_bit(architecture):
    host = bridge(architecture)
    for names in (["blocks.0.hook_resid_pre"], [HOOK], [HOOK, "blocks.0.hook_resid_post", "blocks.2.hook_resid_pre"]):
        assert can_read_unwrapped(host, "+".join(names), {"stop_at_layer": 2})
        _, found = run_unwrapped(host, TOKENS, names)
        _, expected = host.run_with_cache(TOKENS, names_filter=names)
        assert found.keys() == set(names)
        assert all(torch.equal(found[name], expected[name]) for name in names)


def test_the_bridge_is_as_before_afterwards_and_its_weights_are_read_as_they_are():
    host = bridge(llama)
    modules, before = dict(host.original_model.named_modules()), host(TOKENS)
    _, first = run_unwrapped(host, TOKENS, [HOOK])
    assert dict(host.original_model.named_modules()) == modules
    assert torch.equal(host(TOKENS), before)
    host.blocks[0].mlp.out.weight.mul_(2)
    _, second = run_unwrapped(host, TOKENS, [HOOK])
    assert not torch.equal(first[HOOK], second[HOOK])
    assert torch.equal(second[HOOK], host.run_with_cache(TOKENS, names_filter=[HOOK])[1][HOOK])


def test_the_bridge_is_as_before_after_an_error():
    host = bridge(llama)
    modules = dict(host.original_model.named_modules())
    with pytest.raises(IndexError):
        run_unwrapped(host, TOKENS + 10_000, [HOOK])
    assert dict(host.original_model.named_modules()) == modules
    assert can_read_unwrapped(host, HOOK, {})


def test_whatever_is_not_a_plain_residual_stream_takes_the_bridges_own_pass():
    host = bridge(llama)
    assert can_read_unwrapped(host, HOOK, {"prepend_bos": False})
    assert not can_read_unwrapped(host, "blocks.1.hook_mlp_out", {})
    assert not can_read_unwrapped(host, HOOK, {"attention_mask": torch.ones_like(TOKENS)})
    with torch.enable_grad():
        assert not can_read_unwrapped(host, HOOK, {})
    with host.hooks(fwd_hooks=[("blocks.0.hook_mlp_out", lambda x, hook: 0 * x)]):
        assert not can_read_unwrapped(host, HOOK, {})
    assert not can_read_unwrapped(host, f"{HOOK}+blocks.1.hook_mlp_out", {})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_read_unwrapped(host, HOOK, {})
    host.embed.register_forward_pre_hook(lambda module, args: args)
    assert not can_read_unwrapped(host, HOOK, {})


class OtherBridge(TransformerBridge):
    """Whose pass may be another."""


@pytest.mark.parametrize(
    "change",
    [
        lambda host: host.original_model.train(),
        lambda host: setattr(host, "compatibility_mode", True),
        lambda host: setattr(host.original_model.config, "is_encoder_decoder", True),
        lambda host: setattr(host, "__class__", OtherBridge),
    ],
    ids=["dropout", "folded weights", "an encoder", "a subclass"],
)
def test_a_bridge_whose_pass_is_not_that_of_its_modules_runs_itself(change):
    host = bridge(llama)
    assert can_read_unwrapped(host, HOOK, {})
    change(host)
    assert not can_read_unwrapped(host, HOOK, {})


def test_a_bridge_that_computes_with_parts_of_joint_weights_runs_itself():
    """GPT-2's query, key and value weights are one matrix, of which the bridge keeps parts."""
    shape = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=len(tiny_tokenizer()))
    host = bridge(lambda: GPT2LMHeadModel(GPT2Config(**shape)).eval())
    assert not can_read_unwrapped(host, HOOK, {})


def test_a_pair_of_bridges_is_harvested_so(monkeypatch):
    pair = slc.HookedModelPair(gemma2(), gemma2(noise=0.1), tokenizer=tiny_tokenizer())
    runs = []
    original = unwrapped_pass._unwrapped
    monkeypatch.setattr(unwrapped_pass, "_unwrapped", lambda model: runs.append(model) or original(model))
    found = pair.activations(TOKENS, HOOK)
    assert {id(model) for model in runs} == {id(model.original_model) for model in pair.members}
    expected = [model.run_with_cache(TOKENS, names_filter=[HOOK])[1][HOOK] for model in pair.members]
    assert torch.equal(found, torch.cat(expected, dim=-1))
