"""Latent Scaling of one batch, ours beside the authors' closed form, on the same crosscoder and tokens in the same run.

python benchmarks/latent_scaling.py --peer SPARSITY_ARTIFACTS DICTIONARY_LEARNING --output FILE

The peer, unmodified, from checkouts of yours (without them it is reported as not measured): `closed_form_scalars` of
https://github.com/science-of-finetuning/sparsity-artifacts-crosscoders on a crosscoder of
https://github.com/jkminder/dictionary_learning, in batches of 128 tokens as in its scripts. It is asked for what nu is
made of: the reconstruction and the error of both models. `scaling/default` asks as its pipeline does: for errors of as
large a share of the latents as its 3,176 chat-only ones are of 73,728, and of as many shared ones. Ours computes what
`diagnose` needs of Latent Scaling, for all latents: encoding, decoding, and the sums of three targets, two models and
two probes.

`scaling/centred` compares two diagnoses of ours, from tokens to nu: with the centred nu and presence (256 groups of
tokens) and without. The ratio is that of the time with them to the time without.
"""

import argparse
import contextlib
import importlib.util
import io
import math
import statistics
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from harness import ALLOCATORS, against_target, comparison, hand_back, in_child, interleaved
from results_file import write_results
from torch import Tensor

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.sums import DiagnosisSums
from sae_lens_crosscoder.analysis.encoding import Encoded
from sae_lens_crosscoder.analysis.inputs import shard_block
from sae_lens_crosscoder.analysis.latent_scaling.background_groups import MAX_GROUPS, BackgroundGroups

PEER = "closed form"
D_MODEL, N_TOKENS, K = 128, 2048, 32
D_SAE = {"scaling/default": 4096, "scaling/all": 2048}
N_PASSES = 8
SUBSET = 3176 / 73_728
LINEAR = (1024, 2048, 4096, 8192, 16_384)
PEER_BATCH = 128
CENTRED = {"scaling/centred": 4096, "scaling/centred_wide": 16_384}
ROWS = [*D_SAE, "scaling/linear", *CENTRED]
TARGETS = {"scaling/default": 20.0, "scaling/all": 200.0}
MAX_EXPONENT, MAX_BETA_DIFFERENCE, MAX_CENTRED = 1.1, 1e-5, 2.0
MODELS = ("base", "chat")
Betas = dict[tuple[str, int], list[tuple[Tensor, Tensor]]]


def problem(d_sae: int) -> tuple[slc.JumpReLUCrosscoder, Tensor]:
    """A crosscoder with K latents on per token, and activations with all its directions in them."""
    generator = torch.Generator().manual_seed(0)
    crosscoder = slc.JumpReLUCrosscoder(slc.JumpReLUCrosscoderConfig(d_model=D_MODEL, d_sae=d_sae))
    W_dec = torch.randn(d_sae, 2 * D_MODEL, generator=generator)
    W_dec /= crosscoder.layout.norms(W_dec).sum(dim=-1, keepdim=True)  # canonical form
    on = torch.rand(N_TOKENS, d_sae, generator=generator) < K / d_sae
    strengths = torch.rand(N_TOKENS, d_sae, generator=generator) * on
    x = strengths @ W_dec + 0.01 * torch.randn(N_TOKENS, 2 * D_MODEL, generator=generator)
    with torch.no_grad():
        crosscoder.W_dec.copy_(W_dec)
        crosscoder.W_enc.copy_(2 * W_dec.T)
        crosscoder.b_dec.copy_(0.01 * torch.randn(2 * D_MODEL, generator=generator))
        crosscoder.threshold.fill_((x @ crosscoder.W_enc).flatten().topk(K * N_TOKENS).values.min())
    return crosscoder, x


@torch.no_grad()
def our_scaling(crosscoder: slc.crosscoders.InferenceCrosscoder, x: Tensor) -> slc.analysis.LatentScaling:
    scaling = slc.analysis.LatentScaling(crosscoder)
    feature_acts = crosscoder.encode_sparse(x)
    scaling.add(x, feature_acts, crosscoder.decode(feature_acts))
    return scaling


def import_peer(sparsity_artifacts: str, dictionary_learning: str) -> tuple[Any, Any]:
    """The authors' script with its loaders of targets, and their crosscoder's class."""
    sys.path[:0] = [sparsity_artifacts, dictionary_learning]
    # Imported at the top of their files, and not needed for what is measured.
    for name in (
        "nnsight",
        "zstandard",
        "loguru",
        "tools.utils",
        "tools.cc_utils",
        "tools.latent_scaler.scaler_training",
    ):
        sys.modules[name] = MagicMock()
    spec = importlib.util.spec_from_file_location("peer", Path(sparsity_artifacts) / "scripts/compute_scalers.py")
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    torch.set_grad_enabled(True)  # which the script turns off for the whole process
    from dictionary_learning.dictionary import BatchTopKCrossCoder

    return script, BatchTopKCrossCoder


def peer_betas(
    crosscoder: slc.JumpReLUCrosscoder, x: Tensor, error_subsets: list[Tensor], checkouts: list[str]
) -> Callable[[], Betas]:
    """A function that computes, by target and model, betas of some latents: their numbers, and their betas."""
    script, crosscoder_class = import_peer(*checkouts)
    d_sae = crosscoder.cfg.d_sae
    theirs = crosscoder_class(D_MODEL, d_sae, 2, k=K)
    base, chat = crosscoder.decoders
    with torch.no_grad():
        theirs.encoder.weight.copy_(torch.stack([part.T for part in crosscoder.encoders]))
        theirs.encoder.bias.copy_(crosscoder.b_enc)
        theirs.decoder.weight.copy_(torch.stack([base, chat]))
        theirs.decoder.bias.copy_(torch.stack(crosscoder.decoder_biases))
        theirs.threshold.copy_(crosscoder.threshold[0])  # in their terms of scores, which ours are
    batches = torch.stack(crosscoder.layout.split(x), dim=1).split(PEER_BATCH)
    everything = torch.arange(d_sae)
    asked = [
        *(("reconstruction", m, getattr(script, f"load_{MODELS[m]}_reconstruction"), [everything]) for m in (0, 1)),
        ("error", 0, partial(script.load_base_error, base_decoder=base.detach()), error_subsets),
        ("error", 1, script.load_chat_error, error_subsets),
    ]

    def compute() -> Betas:
        betas: Betas = {}
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            for target, model, loader, subsets in asked:
                for latents in subsets:
                    found = script.closed_form_scalars(
                        chat.detach()[latents], latents, batches, theirs, loader, device=torch.device("cpu")
                    )
                    betas.setdefault((target, model), []).append((latents, found[0]))
        return betas

    return compute


def max_beta_difference(ours: slc.analysis.LatentScaling, theirs: Betas) -> float:
    """The largest difference of a beta, relative to the beta or, if that is below 1, to 1.

    1 is what a latent's share of its own reconstruction is, and cancels from its error.
    """
    worst = 0.0
    for (target, model), parts in theirs.items():
        beta = ours.beta(target, model)  # pyright: ignore[reportArgumentType]
        for latents, expected in parts:
            difference = (beta[latents] - expected).abs() / expected.abs().clamp(min=1)
            assert torch.equal(beta[latents].isnan(), expected.isnan())
            worst = max(worst, float(difference.nan_to_num(nan=0.0).max()))
    assert worst <= MAX_BETA_DIFFERENCE, f"A beta differs by {worst} from the closed form's."
    return worst


def measure(name: str, rounds: int, checkouts: list[str] | None) -> dict[str, Any]:
    """One row of ours beside the closed form."""
    torch.set_num_threads(1)
    d_sae = D_SAE[name]
    crosscoder, x = problem(d_sae)
    functions: dict[str, Callable[[], Any]] = {"ours": lambda: our_scaling(crosscoder, x)}
    n_errors, more = d_sae, {}
    subsets = [torch.arange(d_sae)]
    if name == "scaling/default":
        n_errors = round(d_sae * SUBSET)
        shuffled = torch.randperm(d_sae, generator=torch.Generator().manual_seed(1))
        subsets = list(shuffled[: 2 * n_errors].split(n_errors))
    if checkouts is not None:
        functions[PEER] = peer_betas(crosscoder, x, subsets, checkouts)
        more["max_beta_difference"] = max_beta_difference(our_scaling(crosscoder, x), functions[PEER]())
    times = interleaved(functions, rounds, warm_up=1)
    sizes = {"d_model": D_MODEL, "d_sae": d_sae, "n_tokens": N_TOKENS, "latents_with_error": n_errors}
    row = comparison(name, PEER, times["ours"], times.get(PEER), **sizes, **more)
    return against_target(row, TARGETS[name])


class Uncentred(DiagnosisSums):
    """The sums of a diagnosis without those of the centred nu."""

    def add(self, part: Encoded, places: Tensor) -> None:
        self.scaling.add(*part)
        self.free.add(*part)
        self.fve.add(part.activations, part.reconstruction)


@torch.no_grad()
def diagnose(sums_class: type[DiagnosisSums], crosscoder: slc.JumpReLUCrosscoder, x: Tensor, n_passes: int) -> None:
    """Stream the same tokens several times, and compute every nu that the table has."""
    data = slc.EvalData(activations=[x])
    labels = torch.arange(n_passes * len(x)) % MAX_GROUPS
    sums = sums_class(crosscoder, shard_block(data), BackgroundGroups(labels, MAX_GROUPS, "token ids"))
    for n in range(n_passes):
        feature_acts = crosscoder.encode_sparse(x)
        part = Encoded(x, feature_acts, crosscoder.decode(feature_acts))
        sums.add(part, torch.arange(n * len(x), (n + 1) * len(x)))
    for probe in (0, 1):
        for target in ("error", "reconstruction"):
            sums.scaling.nu(target, probe)
            sums.scaling.nu_interval(target, probe)
        if sums_class is DiagnosisSums:
            for target in ("activation", "error", "reconstruction"):
                sums.centred.nu(target, probe)


def measure_centred(name: str, rounds: int) -> dict[str, Any]:
    """One row of the diagnosis with centred nu beside the one without; the ratio is with / without."""
    torch.set_num_threads(1)
    d_sae = CENTRED[name]
    crosscoder, x = problem(d_sae)
    kinds = {"with": DiagnosisSums, "without": Uncentred}
    times = interleaved({key: partial(diagnose, kind, crosscoder, x, N_PASSES) for key, kind in kinds.items()}, rounds)
    row = comparison(name, "without centred nu", times["without"], times["with"])
    sizes = {"d_model": D_MODEL, "d_sae": d_sae, "n_tokens": N_PASSES * N_TOKENS, "n_groups": MAX_GROUPS}
    added = 8 * MAX_GROUPS * (d_sae + 2 * 2 * D_MODEL)
    row = {
        **{key: row[key] for key in ("name", "rounds", "ratio", "status")},
        "without_ms": row["ours_ms"],
        "with_ms": row["peer_ms"],
        "added_mib": added / 2**20,
        **sizes,
    }
    return against_target(row, MAX_CENTRED, at_least=False)


def measure_linear(rounds: int) -> dict[str, Any]:
    """Ours for growing crosscoders, and the power of d_sae with which it grows: the slope between logarithms."""
    torch.set_num_threads(1)
    problems = {d_sae: problem(d_sae) for d_sae in LINEAR}
    times = interleaved({str(d): partial(our_scaling, *problems[d]) for d in LINEAR}, rounds)
    medians = {d_sae: statistics.median(times[str(d_sae)]) for d_sae in LINEAR}
    logarithms = [[math.log(number) for number in numbers] for numbers in (medians, medians.values())]
    slope = statistics.linear_regression(*logarithms).slope
    row = {"name": "scaling/linear", "ours_ms": medians, "rounds": rounds, "exponent": slope, "status": "measured"}
    return against_target(row, MAX_EXPONENT, "exponent", at_least=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=ROWS, choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer", nargs=2, metavar=("SPARSITY_ARTIFACTS", "DICTIONARY_LEARNING"))
    parser.add_argument("--output", type=Path, default=Path("latent_scaling.json"))
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        (name,) = args.rows
        if name == "scaling/linear":
            hand_back(measure_linear(args.rounds))
        elif name in CENTRED:
            hand_back(measure_centred(name, args.rounds))
        else:
            hand_back(measure(name, args.rounds, args.peer))
        return
    rows: list[dict[str, Any]] = []
    more = ["--peer", *args.peer] if args.peer else []
    for name in args.rows:
        for allocator in ALLOCATORS:
            row = in_child(__file__, ["--rows", name, "--rounds", str(args.rounds), *more], allocator)
            rows.append({**row, "allocator": allocator})
        print(name, flush=True)
        write_results(args.output, rows)


if __name__ == "__main__":
    main()
