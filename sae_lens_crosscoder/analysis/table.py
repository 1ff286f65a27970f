"""Latent tables on disk, with the manifest that says what they are of."""

from pathlib import Path

import pandas as pd

LATENTS_FILENAME = "latents.parquet"


def write_latents(table: pd.DataFrame, folder: str | Path) -> Path:
    """Write a table of `diagnose`, and its manifest, to `latents.parquet` in a crosscoder's folder."""
    path = Path(folder) / LATENTS_FILENAME
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_parquet(path)  # pandas keeps .attrs in the file's metadata
    return path


def read_latents(folder: str | Path) -> pd.DataFrame:
    """The table in a crosscoder's folder; its manifest is in `.attrs`."""
    path = Path(folder) / LATENTS_FILENAME
    if not path.exists():
        raise ValueError(f"{folder} has no {LATENTS_FILENAME}: make one with slc.diagnose and write_latents.")
    table = pd.read_parquet(path)
    if "delta_norm" not in table or not table.attrs:
        raise ValueError(f"{path} is not a latent table of this package: it has no delta_norm or no manifest.")
    return table
