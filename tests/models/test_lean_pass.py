"""Laws of the lean pass: a model's own values bit by bit, its hooks and blocks untouched, and only where it is safe."""

import pytest
import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.lean_pass import can_read_lean, lean_activation
from tests.models.small_models import some_tokens

HOOKS = ("blocks.1.hook_resid_post", "blocks.1.hook_resid_mid", "blocks.1.hook_mlp_out", "blocks.0.hook_attn_out")
STOP = {"stop_at_layer": 2, "prepend_bos": False}
SHAPES = {
    "gelu_new, rotary": dict(act_fn="gelu_new", positional_embedding_type="rotary", rotary_dim=8),
    "half rotary, adjacent": dict(
        act_fn="relu", positional_embedding_type="rotary", rotary_dim=4, rotary_adjacent_pairs=True
    ),
    "standard, local": dict(act_fn="gelu_new", use_local_attn=True, attn_types=["global", "local"], window_size=3),
    "Gemma's": dict(
        act_fn="gelu_pytorch_tanh",
        normalization_type="RMS",
        gated_mlp=True,
        n_key_value_heads=2,
        positional_embedding_type="rotary",
        rotary_dim=8,
        attn_scores_soft_cap=2.0,
        use_normalization_before_and_after=True,
    ),
    "soft cap": dict(act_fn="silu", attn_scores_soft_cap=1.0),
    "bfloat16": dict(act_fn="gelu_new", dtype=torch.bfloat16),
}


def model(**fields):
    config = HookedTransformerConfig(
        **{"n_layers": 2, "d_model": 32, "n_heads": 4, "d_head": 8, "d_mlp": 64, "n_ctx": 16, "d_vocab": 50, **fields},
        seed=0,
        device="cpu",
    )
    host = HookedTransformer(config).eval()
    with torch.no_grad():
        for parameter in host.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return host


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


def same(host, hook_name, tokens):
    assert can_read_lean(host, hook_name, STOP)
    expected = host.run_with_cache(tokens, names_filter=[hook_name], **STOP)[1][hook_name]
    return torch.equal(lean_activation(host, tokens, hook_name, STOP), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_activations_equal_the_models_own_bit_by_bit(shape):
    host = model(**SHAPES[shape])
    assert all(same(host, hook_name, some_tokens(3, 11)) for hook_name in HOOKS)


def test_long_inputs_of_the_activation_function_are_cut_without_a_trace(monkeypatch):
    monkeypatch.setattr("sae_lens_crosscoder.models.lean_pass._CHUNK", 128)
    assert same(model(act_fn="gelu_new"), HOOKS[0], some_tokens(5, 13))


def test_the_model_is_as_before_afterwards():
    host, tokens = model(act_fn="gelu_new"), some_tokens()
    before = host(tokens)
    lean_activation(host, tokens, HOOKS[0], STOP)
    assert torch.equal(host(tokens), before)
    assert not any("forward" in vars(block) for block in host.blocks)
    assert not any(point._forward_hooks for point in host.hook_dict.values())


def test_hooks_gradients_and_other_hook_points_take_the_models_own_pass():
    host = model(act_fn="gelu_new")
    assert can_read_lean(host, HOOKS[0], STOP)
    assert not can_read_lean(host, "blocks.0.attn.hook_z", STOP)
    assert not can_read_lean(host, HOOKS[0], {**STOP, "attention_mask": None})
    with torch.enable_grad():
        assert not can_read_lean(host, HOOKS[0], STOP)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not can_read_lean(host, HOOKS[0], STOP)
    host.add_hook("blocks.0.attn.hook_pattern", lambda value, hook: value)
    assert not can_read_lean(host, HOOKS[0], STOP)


def test_a_hook_inside_a_member_still_counts_in_the_pairs_activations():
    pair = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    tokens = some_tokens(d_vocab=200)
    plain = pair.activations(tokens, "blocks.1.hook_resid_post")
    with pair.chat.hooks(fwd_hooks=[("blocks.0.mlp.hook_post", lambda value, hook: 0 * value)]):
        edited = pair.activations(tokens, "blocks.1.hook_resid_post")
    assert torch.equal(plain[..., :96], edited[..., :96])
    assert not torch.equal(plain[..., 96:], edited[..., 96:])
    assert torch.equal(pair.activations(tokens, "blocks.1.hook_resid_post"), plain)
