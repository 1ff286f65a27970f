"""One look at a GPU in under ten minutes: kernels, the step at the paper's size, harvesting, memory, Latent Scaling.

python benchmarks/gpu.py --output benchmarks/results/gpu.json
python benchmarks/gpu.py --dry-run

Everything is random weights of the paper's shapes; `--dry-run` does the same at small sizes on the CPU, to see that the
script works. Peers run unmodified in the same process; what a kernel computes is compared with PyTorch's own.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from harness import against_target, comparison
from results_file import write_results
from step_peers import SAE_LENS, Size, activations, dictionary_learning_step, sae_lens_step, stepping
from torch import Tensor
from training_step import our_trainer
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.crosscoders.sparse_step import kernels

PAPER, SMALL = Size(2304, 73_728, 100, 2048), Size(16, 256, 8, 64)
MAX_ERROR = 1e-4


def synchronized(work: Callable[[], Any], device: str) -> float:
    """Milliseconds until the device has finished the work."""
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) * 1e3


def times_of(functions: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, list[float]]:
    for function in functions.values():
        for _ in range(3):
            synchronized(function, device)
    rows = [{name: synchronized(function, device) for name, function in functions.items()} for _ in range(rounds)]
    return {name: [row[name] for row in rows] for name in functions}


def kernel_rows(size: Size, device: str) -> list[dict[str, Any]]:
    """Each operation on pairs on the device, beside the same on the CPU: the largest relative error."""
    generator = torch.Generator().manual_seed(0)
    n_tokens, n_pairs = 64, 64 * size.k
    table, rows = (torch.randn(n, 2 * size.d_model, generator=generator) for n in (size.d_sae, n_tokens))
    token = torch.arange(n_tokens).repeat_interleave(size.k)
    latent = torch.randint(0, size.d_sae, (n_pairs,), generator=generator)
    weights, starts = torch.rand(n_pairs, generator=generator), torch.arange(0, n_pairs, size.k)
    tile = torch.randn(n_tokens, size.d_sae, generator=generator)
    calls: dict[str, tuple[Callable[..., Tensor], list[Tensor]]] = {
        "gather_sum": (kernels.gather_sum, [table, latent, starts, weights]),
        "gather_dot": (kernels.gather_dot, [rows, table, token, latent]),
        "indices_above": (kernels.indices_above, [tile, torch.full((size.d_sae,), 2.0)]),
    }
    found: list[dict[str, Any]] = []
    for name, (kernel, arguments) in calls.items():
        expected, got = kernel(*arguments), kernel(*(argument.to(device) for argument in arguments)).cpu()
        error = ((expected - got).abs().max() / expected.abs().max()).item()
        found.append(against_target({"name": f"kernel/{name}", "error": error}, MAX_ERROR, "error", at_least=False))
    return found


def gradient_row(size: Size, batch: Tensor, device: str) -> dict[str, Any]:
    """Gradients of the sparse step on the device, beside those of the dense step in float64 on the CPU."""
    gradients: list[dict[str, Tensor]] = []
    torch.manual_seed(0)
    start = slc.BatchTopKTrainingCrosscoder(
        slc.BatchTopKCrosscoderTrainingConfig(d_model=size.d_model, d_sae=size.d_sae, k=size.k)
    ).state_dict()
    for fields in (dict(device=device), dict(training_step="dense", dtype="float64")):
        cfg = slc.BatchTopKCrosscoderTrainingConfig(d_model=size.d_model, d_sae=size.d_sae, k=size.k, **fields)  # pyright: ignore[reportArgumentType]
        crosscoder: Any = slc.BatchTopKTrainingCrosscoder(cfg)
        crosscoder.load_state_dict(start)
        x = batch.to(crosscoder.W_dec)
        step_input: Any = SimpleNamespace(sae_in=x, dead_neuron_mask=None, coefficients={}, n_training_steps=0)
        crosscoder.training_forward_pass(step_input).loss.backward()
        gradients.append({name: weights.grad.double().cpu() for name, weights in crosscoder.named_parameters()})
    ours, exact = gradients
    error = max(((ours[name] - exact[name]).abs().max() / exact[name].abs().max()).item() for name in exact)
    return against_target({"name": "step/gradients", "error": error}, MAX_ERROR, "error", at_least=False)


def step_rows(size: Size, device: str, rounds: int, checkout: str | None) -> list[dict[str, Any]]:
    """A training step beside SAELens's, plain and under autocast, and dictionary_learning's; memory of ours."""
    batches = [batch.to(device) for batch in activations(size)]
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    ours = stepping(our_trainer(size, batches, device=device), size, batches)
    ours()
    memory = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    found: list[dict[str, Any]] = []
    peers: dict[str, Callable[[], Callable[[], Any]]] = {
        SAE_LENS: lambda: sae_lens_step(size, batches),
        f"{SAE_LENS} autocast": lambda: sae_lens_step(size, batches, autocast=True),
    }
    if checkout is not None:
        peers["dictionary_learning"] = lambda: dictionary_learning_step(size, batches, checkout)
    for peer, make in peers.items():  # one after the other: each holds weights and moments
        times = times_of({"ours": ours, peer: make()}, device, rounds)
        row = comparison("step/paper", peer, times["ours"], times[peer], peak_mib=memory)
        found.append(against_target(row, 2.5))
    return found


def gemma_shaped(device: str, is_small: bool) -> slc.HookedModelPair:
    """A random pair of Gemma 2 2B's shape up to the middle layer, in bfloat16."""
    shape: dict[str, Any] = dict(d_model=2304, d_head=256, n_heads=8, d_mlp=9216, d_vocab=256_000, n_layers=14)
    if is_small:
        shape = dict(d_model=32, d_head=8, n_heads=4, d_mlp=64, d_vocab=100, n_layers=2)
    config = dict(
        **shape, n_key_value_heads=4, n_ctx=1024, act_fn="gelu_pytorch_tanh", normalization_type="RMS", gated_mlp=True,
        positional_embedding_type="rotary", rotary_dim=shape["d_head"], use_normalization_before_and_after=True,
        attn_scores_soft_cap=50.0, dtype=torch.bfloat16, device=device,
    )  # fmt: skip
    models = [HookedTransformer(HookedTransformerConfig(**config, seed=m)).eval() for m in (0, 1)]
    return slc.HookedModelPair(*models)


@torch.no_grad()
def harvest_row(device: str, rounds: int, is_small: bool) -> dict[str, Any]:
    pair = gemma_shaped(device, is_small)
    hook = f"blocks.{pair.base.cfg.n_layers - 1}.hook_resid_post"
    tokens = torch.randint(0, 100, (2, 16) if is_small else (8, 1024), device=device)
    times = times_of({"ours": lambda: pair.activations(tokens, hook)}, device, rounds)["ours"]
    milliseconds = statistics.median(times)
    return {"name": "harvest/gemma", "ours_ms": milliseconds, "tokens_per_s": tokens.numel() / milliseconds * 1e3}


@torch.no_grad()
def scaling_row(size: Size, device: str, rounds: int) -> dict[str, Any]:
    """Latent Scaling of all latents: seconds per million tokens."""
    cfg = slc.JumpReLUCrosscoderConfig(d_model=size.d_model, d_sae=size.d_sae, device=device)
    crosscoder = slc.JumpReLUCrosscoder(cfg)
    torch.manual_seed(0)
    for weights in (crosscoder.W_enc, crosscoder.W_dec):
        weights.normal_().div_(weights.shape[1] ** 0.5)
    x = torch.randn(size.batch, 2 * size.d_model, device=device)
    crosscoder.threshold.fill_((x[:8] @ crosscoder.W_enc).flatten().topk(8 * size.k).values.min())
    scaling = slc.analysis.LatentScaling(crosscoder)

    def add() -> None:
        acts = crosscoder.encode_sparse(x)
        scaling.add(x, acts, crosscoder.decode(acts))

    milliseconds = statistics.median(times_of({"ours": add}, device, rounds)["ours"])
    return {"name": "scaling/all", "ours_ms": milliseconds, "s_per_million_tokens": milliseconds * 1e3 / size.batch}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--dictionary-learning", help="a checkout of dictionary_learning, to time its trainer")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--dry-run", action="store_true", help="small sizes on the CPU; nothing is written")
    args = parser.parse_args()
    device, size = ("cpu", SMALL) if args.dry_run else ("cuda", PAPER)
    rounds = 1 if args.dry_run else args.rounds
    rows = kernel_rows(size, device)
    rows += [gradient_row(SMALL, activations(SMALL)[0], device)]
    rows += step_rows(size, device, rounds, args.dictionary_learning)
    rows += [harvest_row(device, rounds, args.dry_run), scaling_row(size, device, rounds)]
    for row in rows:
        print(json.dumps(row))
    if args.output is not None and not args.dry_run:
        write_results(args.output, rows, device=torch.cuda.get_device_name())


if __name__ == "__main__":
    main()
