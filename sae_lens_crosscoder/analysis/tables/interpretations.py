"""Explanations of latents in a crosscoder's folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.tables.parquet import load_table, save_table
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.folder import CROSSCODER_SHA256

INTERPRETATIONS_FILENAME = "interpretations.parquet"


@dataclass(frozen=True)
class Interpretations:
    """Explanations of latents with their scores, and their manifest."""

    table: pd.DataFrame
    """One row per interpreted latent: see `interpret`."""
    manifest: dict[str, Any]

    @classmethod
    def load(cls, folder: str | Path) -> "Interpretations":
        """Load the explanations in a crosscoder's folder; `Diagnosis.load` joins them to the latents."""
        return cls(*load_table(Path(folder) / INTERPRETATIONS_FILENAME))


@validate_arguments
def save_interpretations(interpretations: Interpretations, folder: str | Path) -> Path:
    """Save explanations to a crosscoder's folder, where `Diagnosis.load` reads them.

    Earlier explanations of further latents are kept if they belong to the same crosscoder.

    Args:
        interpretations: what `interpret` returned.
    """
    path = Path(folder) / INTERPRETATIONS_FILENAME
    path.parent.mkdir(parents=True, exist_ok=True)
    table = interpretations.table
    if path.exists():
        earlier = Interpretations.load(folder)
        if earlier.manifest.get(CROSSCODER_SHA256) == interpretations.manifest[CROSSCODER_SHA256]:
            further = earlier.table.drop(index=table.index, errors="ignore")
            table = pd.concat([further, table] if len(further) else [table]).sort_index()
    save_table(table, interpretations.manifest, path)
    return path
