"""Made-up tables of the paper, with some values of every kind missing."""

import numpy as np
import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.paper.paper_tables import MSE_PREFIX, PaperTables
from sae_lens_crosscoder.report.figures.nu_histograms import (
    TARGETS,
)
from tests.report.made_up import make_manifest, make_table

NUS = ["nu_error", "nu_reconstruction"]


def make_latents(n=1000, seed=0):
    """A table of `paper_tables`, some values of every kind missing."""
    table, rng = make_table(n, seed), np.random.default_rng(seed + 100)
    table["cos_sim"] = np.where(rng.random(n) < 0.1, np.nan, rng.uniform(-1, 1, n))
    table["frequency"] = table.n_active / 20_000
    table["frac_template"] = np.where(table.dead | (rng.random(n) < 0.2), np.nan, rng.random(n))
    for target in TARGETS:
        value = rng.lognormal(-7, 2, n) * np.where(rng.random(n) < 0.1, -1, 1)
        table[MSE_PREFIX + target] = np.where(table.dead, np.nan, value)
    return table


def paper(table, pairs, **fields):
    manifest = {
        **make_manifest(),
        "fve": {"base": 0.9, "chat": 0.8, "pooled": 0.85, "difference": 0.6},
        "l0": 7.5,
        **fields,
    }
    return PaperTables(Diagnosis(table, manifest), pairs)


def make_pairs(n=3):
    pairs = pd.DataFrame(
        {"chat_latent": range(n), "base_latent": range(10, 10 + n), "cosine": np.linspace(0.91, 0.99, n)}
    )
    return pairs.assign(isolated=[i % 2 == 0 for i in range(n)], divergence=np.linspace(0, 1, n))


def live(table, label):
    return table[~table.dead & (table.label == label)]
