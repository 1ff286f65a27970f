"""WeightDiagnosis: latents of a crosscoder by its weights alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from sae_lens_crosscoder.analysis.diagnosis.classes import LABELS
from sae_lens_crosscoder.analysis.tables.parquet import load_tables, save_tables
from sae_lens_crosscoder.arguments import validate_arguments

_FILES = {"latents": "weights_latents.parquet", "sources": "weights_sources.parquet", "pairs": "weights_pairs.parquet"}
_ALONE = "diagnose_weights(crosscoder)"


@dataclass(frozen=True)
class WeightDiagnosis:
    """Latents of a crosscoder by their weights, from `diagnose_weights`."""

    latents: pd.DataFrame
    """One row per latent."""
    sources: pd.DataFrame
    """One row per model and hook: `d_model`, `activation_scale`, mean and median decoder norm, `n_largest` (latents
    that write most there), `b_dec_norm` and `b_dec_cos` (with the source that it is compared with)."""
    pairs: pd.DataFrame
    """Pairs of a chat-only and a base-only latent that write the same direction: see `decoupled_pairs`. Empty unless
    there are two models of one width at one hook."""
    manifest: dict[str, Any]
    """Layout of the file, models, hook, assumptions, thresholds, and `needs`."""

    @property
    def classes(self) -> pd.DataFrame:
        """Number of latents of each class (rows), for every model beside the first (columns)."""
        compared: list[str] = self.manifest["compared"]
        counts = {name: self.latents[self._column("label", name)].value_counts() for name in compared}
        return pd.DataFrame(counts, index=list(LABELS)).fillna(0).astype(int).rename_axis("class")

    @property
    def needs(self) -> pd.DataFrame:
        """Quantities that the weights cannot tell (rows), with the models and data that they need (column `needs`)."""
        return pd.DataFrame({"needs": self.manifest["needs"]}).rename_axis("quantity")

    def of(self, name: str) -> pd.DataFrame:
        """The columns `delta_norm`, `label`, `cos_sim` and `dead` of one of `manifest["compared"]`."""
        names = ("delta_norm", "label", "cos_sim")
        columns = {column: self.latents[self._column(column, name)] for column in names}
        return pd.DataFrame({**columns, "dead": self.latents["dead"]})

    def __str__(self) -> str:
        n = len(self.latents)
        told = [f"{n:,} latents"]
        for name, counts in self.classes.items():
            told.append(f"{name}: {', '.join(f'{count:,} {label}' for label, count in counts.items() if count)}")
        if not self.manifest["compared"]:
            told.append("no two models to compare")
        elif len(self.pairs):
            told.append(f"{len(self.pairs):,} decoupled pairs, {int(self.pairs['isolated'].sum()):,} isolated")
        return "; ".join(told) + ". From the weights alone: which of these latents are artifacts needs models and data"

    @validate_arguments
    def save(self, folder: str | Path) -> Path:
        """Save the tables with their manifest in a folder, which is created."""
        return save_tables({file: getattr(self, name) for name, file in _FILES.items()}, self.manifest, folder)

    @classmethod
    @validate_arguments
    def load(cls, folder: str | Path) -> "WeightDiagnosis":
        """Load what `save` wrote.

        Raises:
            ValueError: for a folder without it, or damaged files.
        """
        tables, manifest = load_tables(folder, _FILES, _ALONE)
        names = {"latents": "latent", "sources": "source", "pairs": None}
        return cls(**{name: table.rename_axis(names[name]) for name, table in tables.items()}, manifest=manifest)

    def _column(self, column: str, name: str) -> str:
        return column if column in self.latents else f"{column}_{name}"
