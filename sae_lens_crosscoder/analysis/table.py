"""Latent tables on disk, with the manifest that says what they are of."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.crosscoders.sealing import CROSSCODER_SHA256
from sae_lens_crosscoder.integrity import SEAL, digest, read_json, read_table

LATENTS_FILENAME = "latents.parquet"


def write_latents(table: pd.DataFrame, folder: str | Path) -> Path:
    """Write a table of `diagnose`, and its manifest, to `latents.parquet` in a crosscoder's folder.

    Raises:
        ValueError: if the crosscoder in the folder has other weights than the one that the table is of.
    """
    path = Path(folder) / LATENTS_FILENAME
    _refuse_other_weights(table, path)
    path.parent.mkdir(parents=True, exist_ok=True)
    sealed = table.copy()
    sealed.attrs = {**table.attrs, SEAL: _checksum(table)}
    sealed.to_parquet(path)  # pandas keeps .attrs in the file's metadata
    return path


def read_latents(folder: str | Path) -> pd.DataFrame:
    """The table in a crosscoder's folder; its manifest is in `.attrs`.

    Raises:
        ValueError: without a table, for one that is damaged, and for one of other weights than those in the folder. A
            table in a folder without a crosscoder is read whatever it is of.
    """
    path = Path(folder) / LATENTS_FILENAME
    if not path.exists():
        raise ValueError(f"{folder} has no {LATENTS_FILENAME}: make one with slc.diagnose and write_latents.")
    table = read_table(path)
    if "delta_norm" not in table or not table.attrs:
        raise ValueError(f"{path} is not a latent table of this package: it has no delta_norm or no manifest.")
    sha256: Any = table.attrs.pop(SEAL, None)
    # Tables from before there were checksums have neither.
    if (sha256 is not None or CROSSCODER_SHA256 in table.attrs) and sha256 != _checksum(table):
        raise ValueError(f"{path} is damaged: it does not hold what was written (SHA-256). Diagnose again.")
    _refuse_other_weights(table, path)
    return table


def _checksum(table: pd.DataFrame) -> str:
    """Of the numbers, the names and the manifest; the same before and after a round trip."""
    rows = pd.util.hash_pandas_object(table).to_numpy()
    columns = [[str(name), str(dtype)] for name, dtype in table.dtypes.items()]
    return digest([np.ascontiguousarray(rows).tobytes().hex(), columns, table.attrs])


def _refuse_other_weights(table: pd.DataFrame, path: Path) -> None:
    cfg_path = path.parent / SAE_CFG_FILENAME
    mine = table.attrs.get(CROSSCODER_SHA256)
    theirs = read_json(cfg_path).get(CROSSCODER_SHA256) if cfg_path.exists() else None
    if mine is not None and theirs is not None and mine != theirs:
        raise ValueError(
            f"{path} and the crosscoder beside it do not belong together: the table is of other weights, or of these "
            "in another precision. Diagnose this crosscoder, or keep the table in a folder of its own."
        )
