"""Diagnosis: the latent table with its manifest, in memory and in a crosscoder's folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.analysis.diagnosis.verdict import NuBounds, judging_nu, nu_kind_of
from sae_lens_crosscoder.analysis.tables.interpretations import INTERPRETATIONS_FILENAME, Interpretations
from sae_lens_crosscoder.analysis.tables.parquet import load_table, save_table
from sae_lens_crosscoder.analysis.tables.user_labels import LABELS_FILENAME, load_labels
from sae_lens_crosscoder.arguments import validate_arguments
from sae_lens_crosscoder.crosscoders.folder import CROSSCODER_SHA256, crosscoder_digest
from sae_lens_crosscoder.loading.hub import download
from sae_lens_crosscoder.storage.checksums import CHECKSUMS_FILENAME

LATENTS_FILENAME = "latents.parquet"
_PAIRS_FOLDER = "pairs"

# Fields of a manifest that identify the crosscoder.
_IDENTITY = ("architecture", "models", "hook_name", "dataset_path", "seed", "space", "score", "training")


@dataclass(frozen=True)
class Diagnosis:
    """Latents of one crosscoder with their verdicts, and the conclusion about the pair of models."""

    latents: pd.DataFrame
    """One row per latent: see `diagnose`."""
    manifest: dict[str, Any] = field(default_factory=dict[str, Any])
    """Versions, models, hook, number of tokens, FVE, L0 and the conclusion."""
    interpretation: dict[str, Any] | None = None
    """Manifest of the explanations, if latents were interpreted."""
    pairs: Mapping[str, "Diagnosis"] = field(default_factory=dict[str, "Diagnosis"])
    """Of more than two models: the diagnosis of each model beside the first, by its name. `latents` then has columns
    per model. Figures, reports, the explorer and null runs take one of these."""

    @property
    def conclusion(self) -> str:
        """One sentence on the pair of models: see `diagnose`."""
        return self.manifest.get("conclusion", "")

    @property
    def bounds(self) -> NuBounds:
        """Rule that the verdicts apply to nu: see `verdict`."""
        return self.manifest.get("bounds", "signed")

    @property
    def nu_columns(self) -> tuple[str, str]:
        """Names of the columns with the nu_error and nu_reconstruction that judge chat-only latents."""
        return judging_nu(nu_kind_of(self.latents))

    @validate_arguments
    def save(self, folder: str | Path) -> Path:
        """Save the table with its manifest as `latents.parquet` in a crosscoder's folder, and `pairs` in `pairs/`.

        Raises:
            ValueError: if the crosscoder in the folder has other weights than the diagnosed one.
        """
        path = Path(folder) / LATENTS_FILENAME
        _validate_weights(self.manifest, path)
        path.parent.mkdir(parents=True, exist_ok=True)
        for name, each in self.pairs.items():
            each.save(path.parent / _PAIRS_FOLDER / name)
        save_table(self.latents, self.manifest, path)
        return path

    @classmethod
    @validate_arguments
    def load(cls, folder: str | Path) -> "Diagnosis":
        """Load the diagnosis from a crosscoder's folder, local or on the Hub (`owner/name`).

        Explanations of latents, with their scores, are further columns of `latents` (missing for other latents), and
        so are labels that `save_label` left, as `user_label`.

        Raises:
            ValueError: for a folder without a table, or a table that is damaged or belongs to other weights than those
                in the folder. In a folder without a crosscoder, the weights are not compared.
        """
        if not Path(folder).exists():
            own_files = (LATENTS_FILENAME, INTERPRETATIONS_FILENAME, LABELS_FILENAME)
            folder = download(str(folder), [*own_files, SAE_CFG_FILENAME, CHECKSUMS_FILENAME])
        path = Path(folder) / LATENTS_FILENAME
        if not path.exists():
            raise ValueError(f"{folder} has no {LATENTS_FILENAME}. Create it with diagnose(...).save(folder).")
        latents, manifest = load_table(path)
        pairs = {name: cls.load(path.parent / _PAIRS_FOLDER / name) for name in manifest.get("pairs", ())}
        if "delta_norm" not in latents and not pairs:
            raise ValueError(f"{path} is not a latent table of this package: the column delta_norm is missing.")
        _validate_weights(manifest, path)
        interpretation = None
        if (Path(folder) / INTERPRETATIONS_FILENAME).exists():
            interpretations = Interpretations.load(folder)
            _validate_same_crosscoder(latents, manifest, interpretations, path)
            latents = latents.drop(columns=interpretations.table.columns, errors="ignore").join(interpretations.table)
            interpretation = interpretations.manifest
        if labels := load_labels(folder):
            latents = latents.assign(user_label=latents.index.map(labels))
        return cls(latents, manifest, interpretation, pairs)


def validate_one_pair(diagnosis: Diagnosis, purpose: str) -> None:
    """Raise a ValueError for a diagnosis of more than two models, which has no one pair to show."""
    if diagnosis.pairs:
        raise ValueError(
            f"{purpose} shows two models, but the diagnosis compares {len(diagnosis.pairs)} models with the first. "
            f"Pass one of diagnosis.pairs: {', '.join(diagnosis.pairs)}."
        )


def _validate_weights(manifest: dict[str, Any], path: Path) -> None:
    diagnosed, saved = manifest.get(CROSSCODER_SHA256), crosscoder_digest(path.parent)
    if diagnosed is not None and saved is not None and diagnosed != saved:
        raise ValueError(
            f"{path} belongs to another crosscoder than the one in its folder: to other weights, or to these in "
            "another precision. Diagnose this crosscoder, or keep the table in a folder of its own."
        )


def _validate_same_crosscoder(
    latents: pd.DataFrame, manifest: dict[str, Any], interpretations: Interpretations, path: Path
) -> None:
    differing = [name for name in _IDENTITY if manifest.get(name) != interpretations.manifest.get(name)]
    if differing or not interpretations.table.index.isin(latents.index).all():
        raise ValueError(
            f"{path.parent / INTERPRETATIONS_FILENAME} belongs to another crosscoder than {LATENTS_FILENAME}: they "
            f"differ in {', '.join(differing) or 'the number of latents'}. Delete it, or interpret these latents."
        )
