"""Latent tables on disk, with the manifest that says what they are of, and what was said about latents since."""

from pathlib import Path

import pandas as pd

LATENTS_FILENAME = "latents.parquet"
INTERPRETATIONS_FILENAME = "interpretations.parquet"

# What tells crosscoders apart, of what a manifest says about them.
_IDENTITY = ("architecture", "models", "hook_name", "dataset_path", "seed", "space", "score", "training")


def write_latents(table: pd.DataFrame, folder: str | Path) -> Path:
    """Write a table of `diagnose`, and its manifest, to `latents.parquet` in a crosscoder's folder."""
    path = Path(folder) / LATENTS_FILENAME
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)  # pandas keeps .attrs in the file's metadata
    return path


def read_latents(folder: str | Path) -> pd.DataFrame:
    """The table in a crosscoder's folder; its manifest is in `.attrs`.

    Where latents were interpreted, `explanation` and its scores are further columns (missing for other latents), and
    the manifest of that is `.attrs["interpretation"]`.
    """
    path = Path(folder) / LATENTS_FILENAME
    if not path.exists():
        raise ValueError(f"{folder} has no {LATENTS_FILENAME}: make one with slc.diagnose and write_latents.")
    table = pd.read_parquet(path)
    if "delta_norm" not in table or not table.attrs:
        raise ValueError(f"{path} is not a latent table of this package: it has no delta_norm or no manifest.")
    explained = Path(folder) / INTERPRETATIONS_FILENAME
    return _joined(table, explained) if explained.exists() else table


def write_interpretations(table: pd.DataFrame, folder: str | Path) -> Path:
    """Write a table of `interpret` to a crosscoder's folder, where `read_latents` finds it.

    Latents that were interpreted before, and are not in the table, stay if they are of the same crosscoder.
    """
    path = Path(folder) / INTERPRETATIONS_FILENAME
    path.parent.mkdir(parents=True, exist_ok=True)
    attrs = table.attrs
    if path.exists():
        before = pd.read_parquet(path)
        if before.attrs.get("crosscoder_sha256") == attrs["crosscoder_sha256"]:
            others = before.drop(index=table.index, errors="ignore")
            table = pd.concat([others, table] if len(others) else [table]).sort_index()
            table.attrs.update(attrs)
    table.to_parquet(path)
    return path


def _joined(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    interpretations = pd.read_parquet(path)
    differing = [name for name in _IDENTITY if table.attrs.get(name) != interpretations.attrs.get(name)]
    if differing or not interpretations.index.isin(table.index).all():
        raise ValueError(
            f"{path} is of another crosscoder than the {LATENTS_FILENAME} beside it: they differ in "
            f"{', '.join(differing) or 'how many latents there are'}. Delete it, or interpret these latents."
        )
    joined = table.drop(columns=interpretations.columns, errors="ignore").join(interpretations)
    joined.attrs.update({**table.attrs, "interpretation": interpretations.attrs})
    return joined
