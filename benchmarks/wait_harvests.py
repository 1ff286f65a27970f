"""Rows of waits.py on harvests of random pairs, beside Hugging Face's own modules that stop at the layer."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformer_lens.pretrained.weight_conversions import (
    convert_gemma_weights,
    convert_llama_weights,
    convert_qwen3_weights,
)
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from wait_rows import Times
from waits_peers import in_turn

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import tiny_tokenizer

ARCHITECTURES: dict[str, tuple[Any, Any]] = {
    "gemma2": (Gemma2ForCausalLM, Gemma2Config),
    "llama": (LlamaForCausalLM, LlamaConfig),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config),
}
SHAPE: dict[str, Any] = dict(
    hidden_size=256,
    intermediate_size=1024,
    num_hidden_layers=8,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    max_position_embeddings=256,
)
LAYER, PROMPTS, CONTEXT = 3, 16, 128
HOOKED: dict[str, tuple[Any, dict[str, Any]]] = {
    "gemma2": (
        convert_gemma_weights,
        dict(
            act_fn="gelu_pytorch_tanh",
            attn_scores_soft_cap=50.0,
            output_logits_soft_cap=30.0,
            use_normalization_before_and_after=True,
            use_attn_scale=True,
            attn_scale=16.0,
        ),
    ),
    "llama": (convert_llama_weights, dict(act_fn="silu")),
    "qwen3": (convert_qwen3_weights, dict(act_fn="silu", use_qk_norm=True)),
}
"""How TransformerLens converts weights, and its settings of the architecture."""


class _Stop(Exception):
    pass


def plain_passes(models: list[Any], tokens: Tensor) -> Tensor:
    """Hugging Face's models, one after the other, each stopped behind the layer."""
    read: list[Tensor] = []

    def stop(module: Any, args: Any, output: Any) -> None:
        read.append(output[0] if isinstance(output, tuple) else output)
        raise _Stop

    for model in models:
        handle = model.model.layers[LAYER].register_forward_hook(stop)
        try:
            model(tokens, use_cache=False)
        except _Stop:
            pass
        finally:
            handle.remove()
    return torch.cat(read, dim=-1)


@torch.no_grad()
def harvest(architecture: str, rounds: int, host: str = "TransformerBridge") -> tuple[Times, Times, dict[str, Any]]:
    """Times of a pair of this host and of plain passes, and how far the activations and another host are apart."""
    torch.set_num_threads(1)
    model_class, config_class = ARCHITECTURES[architecture]
    with tempfile.TemporaryDirectory() as folder:
        names = [str(Path(folder, f"model_{m}")) for m in range(2)]
        for m, name in enumerate(names):
            torch.manual_seed(m)
            model_class(config_class(**SHAPE, vocab_size=len(tiny_tokenizer()))).save_pretrained(name)
            tiny_tokenizer().save_pretrained(name)
        plain = [AutoModelForCausalLM.from_pretrained(name).eval() for name in names]
        load = slc.HookedModelPair.from_pretrained
        if host == "HookedTransformer":
            pair = slc.HookedModelPair(*(hooked(architecture, model) for model in plain), tokenizer=tiny_tokenizer())
        else:
            pair = load(*names, model_class_name=host)
        proxies = load(*names, model_class_name="AutoModelForCausalLM")
        tokens = torch.randint(0, 200, (PROMPTS, CONTEXT), generator=torch.Generator().manual_seed(0))
        functions = {
            "ours": lambda: pair.activations(tokens, f"blocks.{LAYER}.hook_resid_post"),
            "plain": lambda: plain_passes(plain, tokens),
            "proxy": lambda: proxies.activations(tokens, f"model.layers.{LAYER}"),
        }
        results = {name: function() for name, function in functions.items()}
        times = in_turn(functions, rounds)
    errors = {name: (result - results["plain"]).abs().max().item() for name, result in results.items()}
    largest = results["plain"].abs().max().item()
    assert max(errors.values()) <= 1e-5 * max(1.0, largest), errors
    ratio = statistics.median(b[0] / a[0] for a, b in zip(times["proxy"], times["plain"], strict=True))
    more = {
        "peer": "two plain passes",
        "max_difference": errors["ours"],
        "largest": largest,
        "ratio_of_AutoModelForCausalLM": ratio,
    }
    return times["ours"], times["plain"], more


def hooked(architecture: str, model: Any) -> HookedTransformer:
    """TransformerLens's model with the weights of Hugging Face's, unfolded."""
    convert, fields = HOOKED[architecture]
    cfg = HookedTransformerConfig(
        n_layers=SHAPE["num_hidden_layers"],
        d_model=SHAPE["hidden_size"],
        d_head=SHAPE["head_dim"],
        n_heads=SHAPE["num_attention_heads"],
        n_key_value_heads=SHAPE["num_key_value_heads"],
        d_mlp=SHAPE["intermediate_size"],
        d_vocab=len(tiny_tokenizer()),
        n_ctx=SHAPE["max_position_embeddings"],
        normalization_type="RMS",
        eps=model.config.rms_norm_eps,
        gated_mlp=True,
        final_rms=True,
        positional_embedding_type="rotary",
        rotary_dim=SHAPE["head_dim"],
        rotary_base=int(model.config.rope_parameters["rope_theta"]),
        **fields,
    )
    host = HookedTransformer(cfg)
    host.load_and_process_state_dict(
        convert(model, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return host.eval()
