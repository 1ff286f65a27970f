"""Sizes from a config alone are those of the model that is loaded."""

import pytest
import torch
from transformers import AutoConfig

from sae_lens_crosscoder.models.loading import load_model
from sae_lens_crosscoder.models.sizes import model_size
from sae_lens_crosscoder.models.tiny import TINY_HOOK
from tests.models.small_models import D_MODEL, N_LAYERS, gemma2, llama, save_pair

HOOKS = {"TransformerBridge": "blocks.1.hook_resid_post", "AutoModelForCausalLM": "model.layers.1"}


@pytest.fixture(scope="module", params=[gemma2, llama], ids=lambda architecture: architecture.__name__)
def folder(request, tmp_path_factory):
    return save_pair(tmp_path_factory.mktemp("models"), request.param)[0]


@pytest.fixture
def config_only(folder, tmp_path):
    AutoConfig.from_pretrained(folder).save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    return str(tmp_path)


@pytest.mark.parametrize("class_name", HOOKS)
def test_a_config_alone_tells_what_the_loaded_model_has(folder, config_only, class_name):
    size = model_size(config_only, HOOKS[class_name], class_name)
    model = load_model(folder, "cpu", "float32", class_name, {})
    assert size.n_params == sum(weights.numel() for weights in model.parameters())
    assert size.n_buffer_bytes == sum(b.numel() * b.element_size() for b in model.buffers())
    blocks = [p for name, p in model.named_parameters() if "layers.0." in name or "layers.1." in name]
    assert size.n_params_to_hook == sum(weights.numel() for weights in blocks)
    assert (size.d_model, size.d_widest, size.n_heads) == (D_MODEL, 64, 4)


def test_later_hooks_pass_more_blocks_and_a_hook_without_a_layer_reads_logits(config_only):
    passed = [
        model_size(config_only, f"blocks.{layer}.hook_mlp_out", "TransformerBridge").n_params_to_hook
        for layer in range(N_LAYERS)
    ]
    assert passed == [(layer + 1) * passed[0] for layer in range(N_LAYERS)]
    without_layer = model_size(config_only, "ln_final.hook_normalized", "TransformerBridge")
    assert without_layer.reads_logits
    assert without_layer.n_params_to_hook == passed[-1]


@pytest.mark.parametrize("name", ["tiny-base", "tiny-null", "tiny-chat+jitter=0.02"])
def test_tiny_models_are_counted_as_loaded_without_their_weights(name, monkeypatch):
    model = load_model(name, "cpu", "float32", "HookedTransformer", {})
    monkeypatch.setattr("sae_lens_crosscoder.models.tiny.models.load_file", None)
    size = model_size(name, TINY_HOOK, "HookedTransformer")
    assert size.n_params == sum(weights.numel() for weights in model.parameters())
    assert size.n_params_to_hook == sum(p.numel() for block in model.blocks[:3] for p in block.parameters())
    assert size.d_vocab == model.cfg.d_vocab


def test_a_hooked_transformer_has_an_unembedding_of_its_own():
    size = model_size("google/gemma-2-2b", "blocks.13.hook_resid_post", "HookedTransformer")
    published, unembedding = 2_614_341_888, 256_000 * 2304  # of google/gemma-2-2b, whose embedding is tied
    n_biases = size.n_params - published - unembedding
    assert 256_000 < n_biases < 0.001 * published


def test_a_config_folder_stands_in_for_a_model_that_cannot_be_reached(folder, config_only, monkeypatch):
    hook = HOOKS["TransformerBridge"]
    size = model_size("some/model", hook, "TransformerBridge", config_folder=config_only)
    own = model_size(config_only, hook, "TransformerBridge")
    assert (size.name, size.n_params) == ("some/model", own.n_params)
    tied = AutoConfig.from_pretrained(folder).tie_word_embeddings
    hooked = model_size("some/model", hook, "HookedTransformer", config_folder=config_only)
    assert hooked.n_params == own.n_params - own.d_vocab + (own.d_vocab * D_MODEL if tied else 0)


def test_nothing_is_allocated_for_a_large_model(config_only, monkeypatch):
    made = []
    original = torch.nn.Linear.__init__

    def recording(self, *args, **kwargs):
        original(self, *args, **kwargs)
        made.append(self.weight.device.type)

    monkeypatch.setattr(torch.nn.Linear, "__init__", recording)
    model_size(config_only, HOOKS["AutoModelForCausalLM"], "AutoModelForCausalLM")
    assert set(made) == {"meta"}


@pytest.mark.parametrize(
    ("name", "hook_name", "class_name", "message"),
    [
        ("tiny-base", "blocks.4.hook_resid_post", "HookedTransformer", "is in layer 4, but tiny-base has 4 layers"),
        ("tiny-bse", TINY_HOOK, "HookedTransformer", "Unknown built-in model 'tiny-bse'"),
        ("tiny-base+jitter=2", TINY_HOOK, "HookedTransformer", "The jitter's size '2' must be between 0 and 1"),
        ("tiny-base", TINY_HOOK, "HookedMamba", "model_class_name='HookedMamba' is not one of"),
    ],
)
def test_what_training_would_refuse_is_refused(name, hook_name, class_name, message):
    with pytest.raises(ValueError, match=message):
        model_size(name, hook_name, class_name)
