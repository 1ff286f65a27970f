"""Latent Scaling without the background: within groups of tokens, or by regression on the co-active latents as well.

python benchmarks/partial_regression.py --seeds 0 1 --output benchmarks/results/partial_regression.json
"""

import argparse
from collections.abc import Iterator
from typing import Any

import pandas as pd
import torch
from planted_pairs import BATCHTOPK, L1, UNSQUARED, Cell, train
from planted_training import EVALUATION_TOKENS, evaluation_data
from results_file import write_results

import sae_lens_crosscoder as slc
from sae_lens_crosscoder.analysis.diagnosis.own_probe import with_own_probe
from sae_lens_crosscoder.analysis.diagnosis.verdict import verdicts
from sae_lens_crosscoder.analysis.latent_scaling.centred_scaling import MIN_OWN_BETA
from sae_lens_crosscoder.synthetic import background_world, score_card, truth_table
from sae_lens_crosscoder.synthetic.scoring import SPECIFIC_BELOW

CELLS = (
    Cell("background, polish", BATCHTOPK, world=background_world, polish=True),
    Cell("standard, polish", BATCHTOPK, polish=True),
    Cell("standard, L1", L1, UNSQUARED),
)
CO_ACTIVE = 0.5
"""A latent is co-active with another if it fires on this share of the other's tokens."""
CENTRED = ("nu_reconstruction_centred", "presence", "beta_centred")


class PartialRegression:
    """Coefficient of each latent in the regression of a target on it and its co-active latents, with intercept."""

    def __init__(self, crosscoder: slc.crosscoders.InferenceCrosscoder, activations: torch.Tensor) -> None:
        self.decoders = [rows.detach().double() for rows in crosscoder.decoders]
        with torch.no_grad():
            f = crosscoder.encode(activations)
            targets = [
                part.double() for x in (activations, crosscoder.decode(f)) for part in crosscoder.layout.split(x)
            ]
        f = f.double()
        on = (f > 0).double()
        n_together = on.T @ on
        self.is_co_active = n_together >= CO_ACTIVE * n_together.diagonal()[:, None]
        f -= f.mean(dim=0)
        self.f2 = f.T @ f
        self.activation, self.reconstruction = ([f.T @ y for y in pair] for pair in (targets[:2], targets[2:]))

    def beta(self, latent: int, target: str, model: int, probe: int) -> float:
        """Coefficient of one latent, in units of its probe."""
        direction = self.decoders[probe][latent]
        products = (self.activation if target == "activation" else self.reconstruction)[model]
        rows = [latent, *(i for i in self.is_co_active[latent].nonzero().squeeze(1).tolist() if i != latent)]
        gram = self.f2[rows][:, rows]
        gram = gram + 1e-9 * gram.diagonal().mean() * torch.eye(len(rows), dtype=gram.dtype)
        return float(torch.linalg.solve(gram, products[rows] @ direction)[0] / direction.square().sum())

    def columns(self, latent: int, probe: int) -> dict[str, float]:
        """What the verdict reads within groups, from regression on co-active latents instead."""
        numbers: dict[str, float] = {}
        for name, target in (("nu_reconstruction_centred", "reconstruction"), ("presence", "activation")):
            own, other = (self.beta(latent, target, model, probe) for model in (probe, 1 - probe))
            numbers[name] = other / own if own >= MIN_OWN_BETA else float("nan")
        return numbers | {"beta_centred": self.beta(latent, "activation", probe, probe)}


def verdicts_with(table: pd.DataFrame, centred: pd.DataFrame) -> list[str]:
    """Verdicts of a latent table, with the columns that a reading without the background gives."""
    frame = with_own_probe(table)[["label", "n_active", "nu_error", "nu_reconstruction"]].join(centred)
    columns = {str(name): values.to_numpy() for name, values in frame.items()}
    return verdicts(columns.pop("label").tolist(), **columns)


def rows_of(cell: Cell, seed: int) -> Iterator[dict[str, Any]]:
    """Train and diagnose one crosscoder, and score three readings of it."""
    world = cell.world(seed)
    tokens = world.sample(EVALUATION_TOKENS, seed=2000 + seed)
    crosscoder = train(cell, world, seed)
    table = slc.diagnose(crosscoder, evaluation_data(world, tokens)).latents
    truth = truth_table(world, crosscoder, tokens)
    regression = PartialRegression(crosscoder, tokens.activations)
    probes = [0 if label == "base_only" else 1 for label in table.label]
    of_regression = [regression.columns(latent, probe) for latent, probe in enumerate(probes)]
    readings = {
        "through the origin": pd.DataFrame(index=table.index),
        "within groups": with_own_probe(table)[list(CENTRED)],
        "co-active latents": pd.DataFrame(of_regression, index=table.index),
    }
    in_base = truth.base_presence
    for name, centred in readings.items():
        judged = table.assign(verdict=verdicts_with(table, centred))
        card = score_card(world, truth, judged)
        decoupled = judged[(judged.label == "chat_only") & (truth.kind == "decoupled") & (in_base >= SPECIFIC_BELOW)]
        yield {
            "cell": cell.name,
            "seed": seed,
            "reading": name,
            **{
                f"{measure}_{side}": getattr(getattr(card, f"{side}_verdict"), measure)
                for side in ("chat", "base")
                for measure in ("precision", "recall", "n")
            },
            "n_decoupled": len(decoupled),
            "n_decoupled_acquitted": int((decoupled.verdict == "chat_specific").sum()),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output", required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for seed in args.seeds:
        for row in (row for cell in CELLS for row in rows_of(cell, seed)):
            rows.append(row)
            print(row, flush=True)
            write_results(args.output, rows, evaluation_tokens=EVALUATION_TOKENS)


if __name__ == "__main__":
    main()
