"""The waits that waits.py measures: what each is, its target, and why it is missed where it is."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from results_file import COMMIT

Times = list[tuple[float, float]]
"""CPU and wall milliseconds of each round."""


@dataclass(frozen=True)
class Wait:
    """What people wait for.

    Args:
        ratio: least ratio of the peer's CPU time (today's, if there is no peer) to ours.
        most_ms: most CPU milliseconds of ours, for waits without a target of the ratio.
        why: the reason, where the target was missed when this was written.
    """

    title: str
    ratio: float | None = None
    most_ms: float | None = None
    why: str | None = None


_BRIDGE = "the bridge's attention is kept bit by bit, and is not fused"
_HOOKED = (
    "TransformerLens's attention is kept bit by bit: it forms the scores and the pattern, where Hugging Face's is fused"
)
_RESAMPLES = "the rest is the tokens, and the ratios of 400 resamples"
WAITS: Mapping[str, Wait] = {
    "demo": Wait(
        "the command demo, whole, with its own settings",
        ratio=2.0,
        why="the steps of the L1 crosscoder, which is dense, take as long as before; printed figures differ in late "
        "digits (see `differences`), because steps sum in another order",
    ),
    "demo/busy": Wait(
        "the command demo (a twentieth of its steps) beside one busy process per core, against an idle machine",
        ratio=1 / 1.3,
        why="both threads of each product wait for the one whose core is taken, and turn in circles for a while before "
        "they sleep",
    ),
    "harvest": Wait(
        "activations of the built-in pair, 4,096 tokens",
        ratio=2.0,
        why="what remains is matrix products, attention, and layer norms in their own order of operations",
    ),
    "harvest/equal": Wait(
        "the built-in base model beside itself with noise on its last of four layers, 4,096 tokens",
        ratio=1.6,  # eight layers over five
    ),
    "harvest/gemma2": Wait(
        "activations of a random Gemma-2 pair of bridges, beside two plain passes that stop at the layer", ratio=1 / 1.1
    ),
    "harvest/llama": Wait("the same of a random Llama pair", ratio=1 / 1.1, why=_BRIDGE),
    "harvest/qwen3": Wait("the same of a random Qwen-3 pair", ratio=1 / 1.1, why=_BRIDGE),
    "harvest/gemma2/hooked": Wait("the Gemma-2 pair as HookedTransformers", ratio=1 / 1.1, why=_HOOKED),
    "harvest/llama/hooked": Wait("the Llama pair as HookedTransformers", ratio=1 / 1.1, why=_HOOKED),
    "harvest/qwen3/hooked": Wait("the Qwen-3 pair as HookedTransformers", ratio=1 / 1.1, why=_HOOKED),
    "step/tiny": Wait(
        "training step, 2 x 32 wide, 512 latents, k 16, batch 256; SAELens",
        ratio=3.0,
        why="operations on few numbers are bound by their dispatch; a dense step takes twice as long as this one",
    ),
    "step/wide": Wait(
        "training step, 2 x 256 wide, 8,192 latents, k 32, batch 1,024, beside the encoder's product alone",
        ratio=1 / 1.45,
        why="Adam reads and writes all weights and moments, and both weight gradients are written before it may",
    ),
    "training/sae_lens": Wait(
        "a step of training with harvest, 2 x 576 wide, 16,384 latents, batch 2,048; SAELens's runner",
        ratio=3.0,
        why="both runs harvest the same activations, and hold them in a buffer",
    ),
    "training/dictionary_learning": Wait(
        "the same; dictionary_learning's crosscoder trainer",
        ratio=4.0,
        why="both runs harvest the same activations",
    ),
    "buffer/4k": Wait(
        "shuffling buffer of 65,536 tokens, 4,096 at a time; SAELens, under the allocator with the lower ratio",
        ratio=15.0,
        why="each row is written once and read once here, which is a copy of memory and no less; with few large chunks "
        "SAELens copies its buffer only 16 times as often",
    ),
    "cache/checksums": Wait(
        "activation cache in bfloat16, 262,144 tokens written and read with checksums; a float32 memory map",
        ratio=1.0,
        why="SHA-256 of what is written, and again of what is read, takes half of the time, and half of the bytes "
        "saves little while the files lie in memory",
    ),
    "cache/int8": Wait(
        "activation cache in int8, read with checksums; one in bfloat16",
        why="trained anew, a crosscoder differs as much from itself on another order of the same tokens",
    ),
    "decoupled_pairs": Wait("decoupled pairs among 16,384 latents, two thirds one-sided", ratio=4.0),
    "pairs/65k": Wait("decoupled pairs among 65,536 latents, beside one pass of the same products", ratio=1 / 3),
    "diagnose": Wait("diagnosis of 16,384 latents on 2,048 tokens", ratio=2.7, why=_RESAMPLES),
    "diagnose/65k": Wait("diagnosis of 65,536 latents on 2,048 tokens", most_ms=5000, why=_RESAMPLES),
    "explorer/73k": Wait("the slowest of 150 latents to open in an explorer of 73,728 latents", most_ms=100),
    "plan": Wait("the command plan, beyond its imports", most_ms=1000),
}


def row(name: str, ours: Times, theirs: Times, peer: str) -> dict[str, Any]:
    """A row; `ratio` is the median over rounds of their CPU time over ours."""
    wait = WAITS[name]
    ratio = statistics.median(b[0] / a[0] for a, b in zip(ours, theirs, strict=True))
    medians = [[statistics.median(times) for times in zip(*rounds, strict=True)] for rounds in (ours, theirs)]
    if wait.ratio is not None:
        target, met, missed_by = f"ratio >= {wait.ratio:.2g}", ratio >= wait.ratio, wait.ratio / ratio
    else:
        most = wait.most_ms or float("nan")
        target, met, missed_by = f"at most {most:,.0f} ms", medians[0][0] <= most, medians[0][0] / most
    return {
        "name": name,
        "title": wait.title,
        "ours_ms": medians[0][0],
        f"{peer}_ms": medians[1][0],
        "ours_wall_ms": medians[0][1],
        f"{peer}_wall_ms": medians[1][1],
        "rounds": len(ours),
        "ratio": ratio,
        "target": target,
        "met": met,
        "why": None if met else f"{missed_by:.2f} times too slow: {wait.why}",
        "commit": COMMIT,
    }
