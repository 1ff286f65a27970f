"""Our exports in the loader of the paper's authors, and files that other libraries wrote in ours.

python benchmarks/peer_layouts.py --dictionary_learning PATH --dedicated_features PATH --crosscode PATH \
    --llamascopium PATH --python PATH/bin/python --output benchmarks/results/peer_layouts.json

A PATH is a folder from which the library can be imported: a checkout, or any folder if it is installed for --python, an
interpreter with torch, safetensors and what the library needs. Libraries that are not named are left out.
"""

import argparse
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
from results_file import ROOT, write_results
from safetensors.torch import load_file, save_file

import sae_lens_crosscoder as slc

sys.path.insert(0, str(ROOT))
from tests.crosscoders.conftest import batchtopk_crosscoder, l1_crosscoder, stacked_batch, step

READ = ("dedicated_features", "crosscode", "llamascopium")
OPTIONS = {"dedicated_features": {"allow_relu": True}, "llamascopium": {"split_gates": True}}
TOLERANCE = 2e-5
WIDTH = 6
SCALES = ((1.0, 1.0), (0.5, 0.5), (0.5, 2.0))


def run_child(python: str, peer: str, checkout: str, folder: Path) -> None:
    child = Path(__file__).with_name("peer_child.py")
    subprocess.run([python, str(child), peer, str(Path(checkout).resolve()), str(folder)], check=True)


def difference(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference, relative to the largest value."""
    if actual.shape != expected.shape:
        return float("inf")
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def compared(peer: str, case: Path, crosscoder: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"peer": peer, "case": case.name}
    found = case.with_suffix(".results")
    if (found / "error.txt").exists():
        return row | {"outcome": "refused by the peer", "why": (found / "error.txt").read_text().replace("\n", " ")}
    x, results = load_file(found / "x.safetensors")["x"], load_file(found / "results.safetensors")
    order = [1, 0] if peer == "dedicated_features" else list(range(x.shape[1]))
    rows = x[:, order].flatten(1).to(crosscoder.W_dec)
    scores, out = crosscoder.encode(rows), crosscoder(rows)
    theirs = results["scores"]
    if peer == "dedicated_features":  # whose latents are reordered, base's first
        theirs = theirs[:, latent_ids(crosscoder)]
    row |= {
        "scores": difference(scores, theirs),
        "reconstruction": difference(out, results["out"][:, order].flatten(1)),
        "same_latents_on": torch.equal(scores > 0, theirs > 0),
    }
    equal = max(row["scores"], row["reconstruction"]) < TOLERANCE
    return row | {"outcome": "equal" if equal else "different"}


def latent_ids(crosscoder: Any) -> list[int]:
    """Places in the file of a crosscoder with two latents of the first model and three of the second."""
    return [2, 3, 4, 0, 1, *range(5, crosscoder.cfg.d_sae)]


def exports(folder: Path) -> Iterator[tuple[Path, Any]]:
    """Trained crosscoders of every norm, scaled and not, in the authors' layout."""
    kinds = [("l1", "sum"), *(("batchtopk", score) for score in ("sum", "l2", "mixed", "max", "none"))]
    for (kind, score), (n, scales) in product(kinds, enumerate(SCALES)):
        fields = {"d_models": (WIDTH, WIDTH), "score": score}
        made = batchtopk_crosscoder(**fields, k=3) if kind == "batchtopk" else l1_crosscoder(**fields)
        made.input_scales.copy_(torch.tensor(scales))
        for seed in (1, 2):
            made.training_forward_pass(step(stacked_batch(2 * WIDTH, 50, seed)))
        case = folder / "theirs" / f"{kind}-{score}-scales_{n}"
        made.save_inference_model(folder / "ours" / case.name)
        crosscoder = slc.load(folder / "ours" / case.name)
        slc.convert.save_dictionary_learning(crosscoder, case)
        x = stacked_batch(2 * WIDTH, 40, 3).float().unflatten(1, (2, WIDTH)).contiguous()
        case.with_suffix(".results").mkdir()
        save_file({"x": x}, case.with_suffix(".results") / "x.safetensors")
        yield case, crosscoder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dictionary_learning", nargs="*", default=[], help="checkouts, several for several versions")
    for peer in READ:
        parser.add_argument(f"--{peer}")
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for checkout in args.dictionary_learning:
        with tempfile.TemporaryDirectory() as folder:
            cases = list(exports(Path(folder)))
            run_child(args.python, "dictionary_learning", checkout, Path(folder, "theirs"))
            name = f"dictionary_learning ({Path(checkout).name})"
            rows += [compared(name, case, crosscoder) for case, crosscoder in cases]
    for peer in READ:
        if getattr(args, peer) is None:
            continue
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
            run_child(args.python, peer, getattr(args, peer), Path(folder))
            for case in sorted(path for path in Path(folder).iterdir() if path.suffix != ".results"):
                rows.append(compared(peer, case, slc.load(case, **OPTIONS.get(peer, {}))))
    write_results(args.output, rows)
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
