"""The page of a diagnosis from the weights alone: where latents write, and what the rest needs."""

from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import Diagnosis
from sae_lens_crosscoder.analysis.weights.result import WeightDiagnosis
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.partition import BY_CONSTRUCTION
from sae_lens_crosscoder.report.figures.class_histograms import cosine_histogram
from sae_lens_crosscoder.report.figures.delta_norm_and_nu import delta_norm_histogram
from sae_lens_crosscoder.report.html.document import render_figure_page, write_document

N_SHOWN = 30


@validate_arguments
def write_weights(diagnosis: WeightDiagnosis, path: str | Path, title: str = "From the weights alone") -> Path:
    """Write a diagnosis from the weights alone as one HTML file that opens anywhere, offline.

    Args:
        diagnosis: the result of `diagnose_weights`.
    """
    manifest = diagnosis.manifest
    tables = {name: diagnosis.of(name) for name in manifest["compared"]}
    apart = ("needs", "assumptions", "compared")
    page = render_figure_page(
        "pages/weights.html",
        title,
        summary=str(diagnosis),
        layout=manifest["layout"],
        assumptions=manifest.get("assumptions", []),
        sources=diagnosis.sources,
        classes=diagnosis.classes if tables else None,
        histogram=delta_norm_histogram({name: Diagnosis(table) for name, table in tables.items()}) if tables else None,
        cosines=cosine_histogram(tables) if tables else None,
        one_sided={name: _one_sided(diagnosis, name) for name in tables},
        by_construction=BY_CONSTRUCTION if "exclusive" in diagnosis.latents else "",
        pairs=diagnosis.pairs.head(N_SHOWN),
        n_pairs=len(diagnosis.pairs),
        n_shown=N_SHOWN,
        needs=diagnosis.needs,
        manifest={name: value for name, value in manifest.items() if name not in apart},
    )
    return write_document(page, path)


def _one_sided(diagnosis: WeightDiagnosis, name: str) -> pd.DataFrame:
    """The latents nearest to either end of Delta_norm, with their norms."""
    table: Any = diagnosis.of(name).drop(columns="dead")
    norms = [column for column in diagnosis.latents if str(column).startswith("dec_norm_")]
    table = table.join(diagnosis.latents[[*norms, "threshold", "b_enc"]])
    ends = table[table["label"].isin(["chat_only", "base_only"])]
    order = (ends["delta_norm"] - 0.5).abs().sort_values(ascending=False, kind="stable")
    return ends.loc[order.index].head(N_SHOWN)
