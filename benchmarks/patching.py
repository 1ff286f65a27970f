"""Times many interventions at one hook, beside a hook and a full forward pass for each.

python benchmarks/patching.py --rounds 9 --output benchmarks/results/patching.json

A random pair of 12 layers, 32 interventions after block 6 on the last 8 of 64 positions, and the KL from the chat model
there. Both sides read both models' activations at the hook once. The peer then runs the whole chat model once as it is,
and once per intervention with a hook. Ours runs layers 7 to 12 alone, on all interventions as one batch, and unembeds
the last 8 positions. In `patch/L6of12` every intervention runs all 64 positions through these layers; in
`patch/L6of12/shared_prefix` the 56 positions before the first edit run once, and their keys and values are shared.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from harness import ALLOCATORS, against_target, comparison, hand_back, in_child, interleaved
from results_file import write_results
from torch import Tensor
from transformer_lens import HookedTransformer, HookedTransformerConfig

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.causal import Intervention, intervention, kl_divergence, log_probs

N_LAYERS, HOOK, D_MODEL, D_SAE, D_VOCAB = 12, "blocks.5.hook_resid_post", 128, 1024, 4096
N_INTERVENTIONS, N_LATENTS, N_POS, N_LAST, TOLERANCE = 32, 16, 64, 8, 1e-5
PEER = "a hook and a full forward pass each"
ROWS = {"patch/L6of12": (False, 1.8), "patch/L6of12/shared_prefix": (True, 6.0)}
"""True if keys and values of the untouched prefix are shared; and the target."""


class Experiment:
    """The same interventions, run both ways."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pair = slc.HookedModelPair(random_model(seed=1), random_model(seed=2))
        self.tokens = torch.randint(0, D_VOCAB, (1, N_POS), generator=generator)
        self.last = torch.arange(N_POS)[None] >= N_POS - N_LAST
        cfg = slc.ReLUCrosscoderConfig(d_model=D_MODEL, d_sae=D_SAE)
        crosscoder = slc.ReLUCrosscoder(cfg)
        self.layout = crosscoder.layout
        with torch.no_grad():
            crosscoder.W_dec.copy_(torch.randn(D_SAE, 2 * D_MODEL, generator=generator) / D_MODEL**0.5)
            crosscoder.W_enc.copy_(crosscoder.W_dec.T)
        chosen = [torch.randperm(D_SAE, generator=generator)[:N_LATENTS] for _ in range(N_INTERVENTIONS)]
        self.interventions = [intervention(crosscoder, latents, "replace") for latents in chosen]

    def edited(self, stacked: Tensor, base: Tensor, one: Intervention) -> Tensor:
        """Return the base model's activation with latents carried over on the last positions."""
        delta = one.deltas(stacked)[0]
        assert delta is not None
        return base + delta * self.last[..., None]

    @torch.no_grad()
    def ours(self, share_prefix: bool) -> Tensor:
        stacked = self.pair.activations(self.tokens, HOOK)
        base, chat = self.layout.split(stacked)
        residual = torch.stack([self.edited(stacked, base, one) for one in self.interventions])
        options = {"share_prefix": share_prefix, "batch_size": len(residual)}
        own = slc.causal.resume_from(self.pair.chat, chat[None], HOOK, self.tokens, self.last)
        return kl(own, slc.causal.resume_from(self.pair.chat, residual, HOOK, self.tokens, self.last, **options))

    @torch.no_grad()
    def peer(self) -> Tensor:
        stacked = self.pair.activations(self.tokens, HOOK)
        base, _ = self.layout.split(stacked)
        own = self.pair.chat(self.tokens)[self.last]
        effects: list[Tensor] = []
        for one in self.interventions:
            hook = (HOOK, lambda value, hook, one=one: self.edited(stacked, base, one))
            effects.append(kl(own, self.pair.chat.run_with_hooks(self.tokens, fwd_hooks=[hook])[self.last]))
        return torch.stack(effects)


def kl(chat: Tensor, logits: Tensor) -> Tensor:
    """Return KL(chat || patched) in nats per position."""
    patched = log_probs(logits)
    return kl_divergence(log_probs(chat).expand_as(patched), patched)


def random_model(seed: int) -> HookedTransformer:
    config = HookedTransformerConfig(
        n_layers=N_LAYERS,
        d_model=D_MODEL,
        n_heads=4,
        d_head=D_MODEL // 4,
        d_mlp=4 * D_MODEL,
        n_ctx=N_POS,
        d_vocab=D_VOCAB,
        act_fn="gelu_new",
        seed=seed,
    )
    return HookedTransformer(config).eval()


def measure(name: str, rounds: int) -> dict[str, Any]:
    torch.set_num_threads(1)
    share_prefix, target = ROWS[name]
    experiment = Experiment()
    effects = experiment.peer()
    difference = (experiment.ours(share_prefix) - effects).abs().max().item()
    assert difference <= TOLERANCE, f"{name}: {difference} nats apart"
    assert effects.mean(dim=-1).unique().numel() == N_INTERVENTIONS  # so that equality says something
    times = interleaved({"ours": lambda: experiment.ours(share_prefix), PEER: experiment.peer}, rounds)
    row = comparison(name, PEER, times["ours"], times[PEER], max_difference=difference)
    return against_target(row, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--rows", nargs="+", choices=list(ROWS), default=list(ROWS), metavar="ROW", help=", ".join(ROWS)
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--output", type=Path, default=Path("patching.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        hand_back(measure(args.rows[0], args.rounds))
        return
    rows: list[dict[str, Any]] = []
    for name in args.rows:
        for allocator in ALLOCATORS:
            row = in_child(__file__, ["--rows", name, "--rounds", str(args.rounds)], allocator)
            rows.append({**row, "allocator": allocator})
        write_results(args.output, rows, interventions=N_INTERVENTIONS, positions=N_POS, last=N_LAST, d_model=D_MODEL)
        print(name, flush=True)


if __name__ == "__main__":
    main()
