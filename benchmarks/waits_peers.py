"""Rows of waits.py beside other libraries: harvests of random pairs, a wide training step, and whole training."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from activation_path import our_config, random_rows, their_config
from sae_lens import LanguageModelSAETrainingRunner
from step_peers import Size, activations, dictionary_learning_step, floors, stepping
from torch import Tensor
from training_step import SIZES, exactness, our_trainer
from transformer_lens import HookedTransformer, HookedTransformerConfig
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.models.tiny import tiny_tokenizer

Times = list[tuple[float, float]]
"""CPU and wall milliseconds of each round."""

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
WIDTH, N_LATENTS, K, BATCH, STEPS = 576, 16_384, 32, 2048, 12


def in_turn(functions: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1) -> dict[str, Times]:
    """Times of each function, which are called in turn, after calls of each to warm up."""
    times: dict[str, Times] = {name: [] for name in functions}
    for round_number in range(rounds + warm_up):
        for name, function in functions.items():
            cpu, wall = time.process_time(), time.perf_counter()
            function()
            if round_number >= warm_up:
                times[name].append(((time.process_time() - cpu) * 1e3, (time.perf_counter() - wall) * 1e3))
    return times


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
def harvest(architecture: str, rounds: int) -> tuple[Times, Times, dict[str, Any]]:
    """Times of a pair of bridges and of plain passes, and how far the activations and another host are apart."""
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
        bridges = load(*names, model_class_name="TransformerBridge")
        proxies = load(*names, model_class_name="AutoModelForCausalLM")
        tokens = torch.randint(0, 200, (PROMPTS, CONTEXT), generator=torch.Generator().manual_seed(0))
        functions = {
            "ours": lambda: bridges.activations(tokens, f"blocks.{LAYER}.hook_resid_post"),
            "plain": lambda: plain_passes(plain, tokens),
            "proxy": lambda: proxies.activations(tokens, f"model.layers.{LAYER}"),
        }
        results = {name: function() for name, function in functions.items()}
        times = in_turn(functions, rounds)
    errors = {name: (result - results["plain"]).abs().max().item() for name, result in results.items()}
    assert max(errors.values()) < 1e-5, errors
    ratio = statistics.median(b[0] / a[0] for a, b in zip(times["proxy"], times["plain"], strict=True))
    more = {"peer": "two plain passes", "max_difference": errors["ours"], "ratio_of_AutoModelForCausalLM": ratio}
    return times["ours"], times["plain"], more


def wide_step(rounds: int) -> tuple[Times, Times, dict[str, Any]]:
    """Our step in float32, and the encoder's product alone."""
    torch.set_num_threads(1)
    size = SIZES["step/base"]
    batches = activations(size)
    trainer = our_trainer(size, batches, screening="float32")
    step = stepping(trainer, size, batches)
    for _ in range(20):
        step()
    times = in_turn({"ours": step, "product": floors(size, batches)["floor (float32 product)"]}, rounds)
    more = exactness(trainer, size, batches[0])
    assert more["missed_pairs"] == 0
    return times["ours"], times["product"], {"peer": "the encoder's product", **more}


def training_pair() -> slc.HookedModelPair:
    """Two random models of SmolLM2's width and four layers."""
    config: dict[str, Any] = dict(
        n_layers=4, d_model=WIDTH, n_heads=9, d_head=64, d_mlp=1536, n_ctx=CONTEXT, d_vocab=32_000, act_fn="gelu"
    )
    return slc.HookedModelPair(*(HookedTransformer(HookedTransformerConfig(**config, seed=m)).eval() for m in (0, 1)))


@cache
def whole_training(rounds: int, checkout: str | None) -> dict[str, tuple[Times, Times, dict[str, Any]]]:
    """Runs of a few steps from the first harvested token to the trained crosscoder, by peer."""
    torch.set_num_threads(2)
    pair, rows = training_pair(), random_rows((STEPS + 24) * BATCH // CONTEXT)
    fields: dict[str, Any] = {
        "train_batch_size_tokens": BATCH,
        "n_batches_in_buffer": 4 * BATCH // CONTEXT,
        "training_tokens": STEPS * BATCH,
        "store_batch_size_prompts": BATCH // CONTEXT,
    }
    sizes = (WIDTH, N_LATENTS, K)

    def ours() -> None:
        trained = slc.CrosscoderTrainingRunner(our_config(*sizes, **fields), rows, pair).run()
        assert all(weights.isfinite().all() for weights in trained.parameters())

    functions: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "sae_lens": lambda: LanguageModelSAETrainingRunner(their_config(*sizes, **fields), rows, pair).run(),
    }
    if checkout is not None:
        functions["dictionary_learning"] = lambda: _dictionary_learning(pair, checkout)
    times = in_turn(functions, rounds, warm_up=0)
    per_step = {name: [(cpu / STEPS, wall / STEPS) for cpu, wall in each] for name, each in times.items()}
    return {name: (per_step["ours"], each, {"peer": name}) for name, each in per_step.items() if name != "ours"}


@torch.no_grad()
def _harvested(pair: slc.HookedModelPair, n_batches: int) -> list[Tensor]:
    tokens = torch.randint(0, 32_000, (n_batches, BATCH // CONTEXT, CONTEXT))
    return [pair.activations(part, "blocks.1.hook_resid_post").flatten(0, 1) for part in tokens]


def _dictionary_learning(pair: slc.HookedModelPair, checkout: str) -> None:
    """As many harvests and steps as our run makes, which fills a buffer first."""
    batches = _harvested(pair, STEPS + 4)
    step = dictionary_learning_step(Size(WIDTH, N_LATENTS, K, BATCH), batches, checkout)
    for _ in range(STEPS):
        step()
