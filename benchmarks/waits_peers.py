"""Rows of waits.py beside other libraries: training steps, whole training, and one pass of products."""

import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from typing import Any

import torch
from activation_path import our_config, random_rows, their_config
from sae_lens import LanguageModelSAETrainingRunner
from step_peers import Size, activations, dictionary_learning_step, floors, sae_lens_step, stepping
from torch import Tensor
from torch.nn.functional import normalize
from training_step import SIZES, exactness, our_trainer
from transformer_lens import HookedTransformer, HookedTransformerConfig
from wait_rows import Times
from wait_workloads import MANY, random_crosscoder, thirds

import sae_lens_crosscoder as slc

CONTEXT = 128
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


def tiny_step(rounds: int) -> tuple[Times, Times, dict[str, Any]]:
    """Our step of few latents against SAELens's; a time is that of 50 steps, over 50."""
    torch.set_num_threads(1)
    size = SIZES["step/tiny"]
    batches = activations(size)
    trainer = our_trainer(size, batches, screening="float32")
    steps = {"ours": stepping(trainer, size, batches), "SAELens": sae_lens_step(size, batches)}

    def fifty(name: str) -> None:
        for _ in range(50):
            steps[name]()

    times = in_turn({name: partial(fifty, name) for name in steps}, rounds)
    ours, theirs = ([(cpu / 50, wall / 50) for cpu, wall in times[name]] for name in steps)
    return ours, theirs, {"peer": "SAELens", **exactness(trainer, size, batches[0])}


def wide_pairs(rounds: int) -> tuple[Times, Times, dict[str, Any]]:
    """Decoupled pairs, against the products that they need and nothing else."""
    torch.set_num_threads(1)
    crosscoder, table = random_crosscoder(MANY), thirds(MANY)
    found = slc.analysis.decoupled_pairs(crosscoder, table, 0.5)
    base, chat = (normalize(decoder.detach(), dim=-1) for decoder in crosscoder.decoders)
    kinds = {kind: torch.tensor(table.index[table.label == kind].to_numpy()) for kind in ("chat_only", "base_only")}
    ends = [torch.tensor(table.index[table.label != kind].to_numpy()) for kind in kinds]
    products = [(chat[kinds["chat_only"]], base[kinds["base_only"]])]
    for name, own in (("chat_latent", chat), ("base_latent", base)):
        rows = own[torch.tensor(found[name].unique())]
        products += [(rows, decoder[end]) for decoder, end in zip((base, chat), ends, strict=True)]

    def one_pass() -> None:
        for rows, columns in products:
            for part in rows.split(512):
                for others in columns.split(2048):
                    part @ others.T

    def ours() -> None:
        assert slc.analysis.decoupled_pairs(crosscoder, table, 0.5).equals(found)

    times = in_turn({"ours": ours, "one pass": one_pass}, rounds, warm_up=0)
    return times["ours"], times["one pass"], {"peer": "one pass of the products", "n_pairs": len(found)}


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
