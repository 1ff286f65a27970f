"""Times the path from models to training batches, ours beside SAELens's, on the same tokens in the same run.

python benchmarks/activation_path.py --rows harvest buffer/64k --output benchmarks/results/activation_path.json

Rows:

- `harvest`: the pair stopped at the hook, beside full forward passes
- `buffer/64k`: mixing in place, beside SAELens's `mixing_buffer`
- `cache/bf16`: writing and reading back an activation cache, beside float32 memory maps with and without checksums
- `train/end_to_end`: our runner, beside SAELens's with its own BatchTopK SAE on the same pair
"""

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cache_path import cache_rows
from datasets import Dataset
from harness import ALLOCATORS, against_target, comparison, hand_back, in_child, interleaved, peak_memory
from results_file import write_results
from sae_lens import (
    ActivationsStore,
    BatchTopKTrainingSAEConfig,
    LanguageModelSAERunnerConfig,
    LanguageModelSAETrainingRunner,
    LoggingConfig,
)
from sae_lens.training.mixing_buffer import mixing_buffer
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.activations.shuffle_buffer import mixed_batches
from sae_lens_crosscoder.activations.store import PairActivationsStore
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_HOOK, tiny_dataset

D_MODEL, D_VOCAB, CONTEXT, HOOK = 256, 32_000, 128, "blocks.1.hook_resid_post"
D_SAE, K, BATCH, STEPS = 8192, 32, 1024, 24
TINY_D_SAE, TINY_K, TINY_BATCH, TINY_STEPS = 512, 8, 512, 200
BUFFER_TOKENS, BUFFER_BATCH, PASSES, CHUNKS = 65_536, 2048, 3, (1024, 4096)
ROWS = ("harvest", "buffer/64k", "cache/bf16", "train/end_to_end")
HARVEST_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
HARVEST_TARGET, BUFFER_TARGET, BUFFER_MEMORY_TARGET, TRAIN_TARGET = 2.0, 15.0, 2.0, 2.5


def random_pair(dtype: torch.dtype = torch.float32) -> slc.HookedModelPair:
    """Build two random models of four layers, with the hook after the second."""
    config: dict[str, Any] = dict(
        n_layers=4, d_model=D_MODEL, n_heads=4, d_head=64, d_mlp=1024, n_ctx=CONTEXT, d_vocab=D_VOCAB, act_fn="gelu",
        dtype=dtype,
    )  # fmt: skip
    return slc.HookedModelPair(*(HookedTransformer(HookedTransformerConfig(**config, seed=m)).eval() for m in (0, 1)))


def random_rows(n_rows: int) -> Dataset:
    tokens = torch.randint(0, D_VOCAB, (n_rows, CONTEXT), generator=torch.Generator().manual_seed(0))
    return Dataset.from_dict({"input_ids": tokens.tolist()})


def settings(**fields: Any) -> dict[str, Any]:
    """Return the settings of both runners."""
    return {
        "hook_name": HOOK,
        "context_size": CONTEXT,
        "train_batch_size_tokens": BATCH,
        "n_batches_in_buffer": 16 * BATCH // CONTEXT,
        "store_batch_size_prompts": 32,
        "training_tokens": STEPS * BATCH,
        "lr": 1e-3,
        "lr_warm_up_steps": 0,
        "dead_feature_window": 1000,
        "logger": LoggingConfig(log_to_wandb=False),
        "checkpoint_path": None,
        "output_path": None,
        "verbose": False,
        **fields,
    }


def our_config(d_model: int, d_sae: int, k: int, **fields: Any) -> slc.CrosscoderRunnerConfig:
    sae = slc.BatchTopKCrosscoderTrainingConfig(d_model=d_model, d_sae=d_sae, k=k)
    return slc.CrosscoderRunnerConfig(sae=sae, **settings(n_held_out_rows=1, **fields))


def their_config(d_model: int, d_sae: int, k: int, **fields: Any) -> Any:
    sae = BatchTopKTrainingSAEConfig(d_in=2 * d_model, d_sae=d_sae, k=k)
    return LanguageModelSAERunnerConfig(sae=sae, **settings(**fields))


@torch.no_grad()
def harvest_rows(rounds: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    rows = random_rows(64)
    for name, dtype in HARVEST_DTYPES.items():
        pair = random_pair(dtype)
        ours = PairActivationsStore.from_config(pair, our_config(D_MODEL, D_SAE, K, dtype=name), rows)
        theirs = ActivationsStore.from_config(pair, their_config(D_MODEL, D_SAE, K, dtype=name), rows)
        tokens = ours.get_batch_tokens(8)

        def full_forward(pair: Any = pair, tokens: Tensor = tokens) -> Tensor:
            caches = [model.run_with_cache(tokens, names_filter=[HOOK])[1] for model in pair.members]
            return torch.cat([cache[HOOK] for cache in caches], dim=-1)

        functions: dict[str, Callable[[], Tensor]] = {
            "ours": lambda store=ours, tokens=tokens: store.get_activations(tokens),
            "full forward": full_forward,
            "sae_lens": lambda store=theirs, tokens=tokens: store.get_activations(tokens),
        }
        assert all(torch.equal(function().to(dtype), functions["ours"]()) for function in functions.values())
        times = interleaved(functions, rounds)
        for peer, target in (("full forward", HARVEST_TARGET), ("sae_lens", None)):
            row = comparison("harvest", peer, times["ours"], times[peer], dtype=name, n_tokens=tokens.numel())
            found.append(against_target(row, target))
    return found


def stream(chunk: int) -> list[Tensor]:
    """Return chunks that are views of one buffer's worth of activations, repeated: they cost nothing to make."""
    pool = torch.randn(BUFFER_TOKENS, 2 * D_MODEL, generator=torch.Generator().manual_seed(0))
    return list(pool.split(chunk)) * PASSES


def mixed(who: str, chunks: list[Tensor]) -> Iterator[Tensor]:
    if who == "sae_lens":
        torch.manual_seed(0)
        return mixing_buffer(BUFFER_TOKENS, BUFFER_BATCH, iter(chunks))
    dtype = torch.bfloat16 if who == "ours, bfloat16" else None
    return mixed_batches(chunks, batch_size=BUFFER_BATCH, buffer_size=BUFFER_TOKENS, dtype=dtype)


def drain(batches: Iterator[Tensor]) -> int:
    return sum(len(batch) for batch in batches)


def buffer_memory(who: str, chunk: int) -> float:
    """Return the MiB held above the mixed activations themselves."""
    chunks = stream(chunk)
    with peak_memory() as peak:
        drain(mixed(who, chunks))
    return peak["mib"]


def buffer_rows(rounds: int) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for chunk in CHUNKS:
        chunks = stream(chunk)
        n_tokens = PASSES * BUFFER_TOKENS
        for ours, theirs in zip(mixed("ours", chunks), mixed("sae_lens", chunks), strict=True):
            if n_tokens > BUFFER_TOKENS:  # ours shuffles the last buffer once more
                assert torch.equal(ours, theirs)
            n_tokens -= BUFFER_BATCH
        whos = ("ours", "ours, bfloat16", "sae_lens")
        times = interleaved({who: lambda who=who, c=chunks: drain(mixed(who, c)) for who in whos}, rounds, warm_up=1)
        memory = {who: in_child(__file__, ["--memory", who, "--chunk", str(chunk)]) for who in whos}
        for who in whos[:-1]:
            row = comparison("buffer/64k", "sae_lens mixing_buffer", times[who], times["sae_lens"])
            row |= {
                "variant": who,
                "chunk_tokens": chunk,
                "ours_us_per_token": row["ours_ms"] * 1e3 / (PASSES * BUFFER_TOKENS),
                "peer_us_per_token": row["peer_ms"] * 1e3 / (PASSES * BUFFER_TOKENS),
                "ours_peak_mib": memory[who],
                "peer_peak_mib": memory["sae_lens"],
                "memory_ratio": memory["sae_lens"] / memory[who],
            }
            found.append(against_target(row, BUFFER_TARGET))
            found.append(against_target({**row, "name": "buffer/64k memory"}, BUFFER_MEMORY_TARGET, "memory_ratio"))
    return found


def training_row(
    name: str, pair: slc.HookedModelPair, rows: Dataset, sizes: tuple[int, int, int], rounds: int, **fields: Any
) -> Any:
    """Time a run of either runner, from the first harvested token to the trained crosscoder, with loaded models."""

    def ours() -> None:
        slc.CrosscoderTrainingRunner(our_config(*sizes, **fields), rows, pair).run()

    def theirs() -> None:
        LanguageModelSAETrainingRunner(their_config(*sizes, **fields), rows, pair).run()

    times = interleaved({"ours": ours, "theirs": theirs}, rounds, warm_up=0)
    d_model, d_sae, k = sizes
    return comparison(
        name, "sae_lens runner", times["ours"], times["theirs"], d_model=d_model, d_sae=d_sae, k=k,
        n_tokens=settings(**fields)["training_tokens"],
    )  # fmt: skip


def end_to_end_rows(rounds: int) -> list[dict[str, Any]]:
    rows = random_rows((STEPS + 32) * BATCH // CONTEXT)
    found = [
        against_target(training_row("train/end_to_end", random_pair(), rows, (D_MODEL, D_SAE, K), rounds), TRAIN_TARGET)
    ]
    tiny = slc.HookedModelPair.from_pretrained("tiny-base", "tiny-chat")
    fields = {
        "hook_name": TINY_HOOK,
        "context_size": TINY_CONTEXT_SIZE,
        "train_batch_size_tokens": TINY_BATCH,
        "n_batches_in_buffer": 16 * TINY_BATCH // TINY_CONTEXT_SIZE,
        "training_tokens": TINY_STEPS * TINY_BATCH,
    }
    tiny_rows = tiny_dataset((TINY_STEPS + 32) * TINY_BATCH // TINY_CONTEXT_SIZE, seed=0)
    row = training_row("train/end_to_end tiny pair", tiny, tiny_rows, (96, TINY_D_SAE, TINY_K), rounds, **fields)
    return [*found, against_target(row, None)]


MEASURE = dict(zip(ROWS, (harvest_rows, buffer_rows, cache_rows, end_to_end_rows), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("activation_path.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    parser.add_argument("--chunk", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        torch.set_num_threads(1)
        hand_back(buffer_memory(args.memory, args.chunk) if args.memory else MEASURE[args.rows[0]](args.rounds))
        return
    rows: list[dict[str, Any]] = []
    for name in args.rows:
        for allocator in ALLOCATORS:
            found = in_child(__file__, ["--rows", name, "--rounds", str(args.rounds)], allocator)
            rows += [{**row, "allocator": allocator} for row in found]
        print(name, flush=True)
        write_results(args.output, rows)


if __name__ == "__main__":
    main()
