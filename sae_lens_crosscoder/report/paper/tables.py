"""Write the tables behind the paper's figures."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.diagnosis import LATENTS_FILENAME
from sae_lens_crosscoder.analysis.paper.paper_tables import PaperTables
from sae_lens_crosscoder.analysis.statistics.artifacts import counts_below, overlap_with_shared, rank_overlap
from sae_lens_crosscoder.report.paper.numbers import (
    OURS,
    THEIRS,
    most_chat_leaning,
    mse_quantiles,
    paper_correlations,
)
from sae_lens_crosscoder.storage.atomic import atomic_path, write_text_atomically

NUMBERS_FILENAME = "paper.json"


def write_paper_tables(tables: Mapping[str, PaperTables], folder: Path, numbers: pd.DataFrame) -> None:
    """Write `paper.json`, with every number and small table, and `latents.parquet`, with every latent.

    In the JSON, `numbers` has a row per quantity of `paper_numbers`, and `crosscoders` has by name the manifest and the
    tables behind the curves, the correlations, the pairs and the MSE check. null is an unknown number.
    """
    ours, theirs = _records(pd.DataFrame(numbers[OURS])), _records(pd.DataFrame(numbers[THEIRS]))
    rows = [
        {"section": section, "quantity": quantity, "this_crosscoder": our, "paper_gemma_2_2b": their}
        for (section, quantity), our, their in zip(numbers.index, ours, theirs, strict=True)
    ]
    content = {"numbers": rows, "crosscoders": {name: _small_tables(paper) for name, paper in tables.items()}}
    write_text_atomically(json.dumps(content, indent=1, allow_nan=False) + "\n", folder / NUMBERS_FILENAME)
    latents = pd.concat({name: paper.latents for name, paper in tables.items()}, names=["crosscoder"])
    with atomic_path(folder / LATENTS_FILENAME) as partial:
        latents.to_parquet(partial)


def _small_tables(tables: PaperTables) -> dict[str, Any]:
    latents = tables.latents
    frames = {
        "counts_below": counts_below(latents, bounds=tables.diagnosis.bounds).reset_index(),
        "overlap_with_shared": overlap_with_shared(latents).reset_index(),
        "rank_overlap": rank_overlap(most_chat_leaning(latents)).reset_index(),
        "correlations": paper_correlations(latents).reset_index(),
        "pairs": tables.pairs,
        "mse_improvement": mse_quantiles(latents),
    }
    manifest = pd.DataFrame({"manifest": [tables.manifest]})
    return {**_records(manifest)[0], **{name: _records(frame) for name, frame in frames.items()}}


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Convert rows to JSON values, nan to null."""
    return json.loads(frame.to_json(orient="records", double_precision=15))
