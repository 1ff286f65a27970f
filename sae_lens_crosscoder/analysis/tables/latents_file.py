"""Latent tables on disk, with the manifest that says what they are of, and what was said about latents since."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sae_lens.constants import SAE_CFG_FILENAME

from sae_lens_crosscoder.analysis.tables.user_labels import LABELS_FILENAME, read_labels
from sae_lens_crosscoder.crosscoders.sealing import CROSSCODER_SHA256
from sae_lens_crosscoder.loading.hub import download
from sae_lens_crosscoder.storage.checksums import SEAL, digest
from sae_lens_crosscoder.storage.json_files import load_json
from sae_lens_crosscoder.storage.tables import load_table

LATENTS_FILENAME = "latents.parquet"
INTERPRETATIONS_FILENAME = "interpretations.parquet"

# What tells crosscoders apart, of what a manifest says about them.
_IDENTITY = ("architecture", "models", "hook_name", "dataset_path", "seed", "space", "score", "training")


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
    """The table in a crosscoder's folder, here or on the Hub (`owner/name`); its manifest is in `.attrs`.

    Where latents were interpreted, `explanation` and its scores are further columns (missing for other latents), and
    the manifest of that is `.attrs["interpretation"]`. Where `write_label` left labels, they are `user_label`.

    Raises:
        ValueError: without a table, for one that is damaged, and for one of other weights than those in the folder. A
            table in a folder without a crosscoder is read whatever it is of.
    """
    if not Path(folder).exists():
        folder = download(str(folder), [LATENTS_FILENAME, INTERPRETATIONS_FILENAME, LABELS_FILENAME, SAE_CFG_FILENAME])
    path = Path(folder) / LATENTS_FILENAME
    if not path.exists():
        raise ValueError(f"{folder} has no {LATENTS_FILENAME}: make one with slc.diagnose and write_latents.")
    table = load_table(path)
    if "delta_norm" not in table or not table.attrs:
        raise ValueError(f"{path} is not a latent table of this package: it has no delta_norm or no manifest.")
    sha256: Any = table.attrs.pop(SEAL, None)
    # Tables from before there were checksums have neither.
    if (sha256 is not None or CROSSCODER_SHA256 in table.attrs) and sha256 != _checksum(table):
        raise ValueError(f"{path} is damaged: it does not hold what was written (SHA-256). Diagnose again.")
    _refuse_other_weights(table, path)
    explained = Path(folder) / INTERPRETATIONS_FILENAME
    if explained.exists():
        table = _joined(table, explained)
    labels = read_labels(folder)
    return table.assign(user_label=table.index.map(labels)) if labels else table


def _checksum(table: pd.DataFrame) -> str:
    """Of the numbers, the names and the manifest; the same before and after a round trip."""
    rows = pd.util.hash_pandas_object(table).to_numpy()
    columns = [[str(name), str(dtype)] for name, dtype in table.dtypes.items()]
    return digest([np.ascontiguousarray(rows).tobytes().hex(), columns, table.attrs])


def _refuse_other_weights(table: pd.DataFrame, path: Path) -> None:
    cfg_path = path.parent / SAE_CFG_FILENAME
    mine = table.attrs.get(CROSSCODER_SHA256)
    theirs = load_json(cfg_path).get(CROSSCODER_SHA256) if cfg_path.exists() else None
    if mine is not None and theirs is not None and mine != theirs:
        raise ValueError(
            f"{path} and the crosscoder beside it do not belong together: the table is of other weights, or of these "
            "in another precision. Diagnose this crosscoder, or keep the table in a folder of its own."
        )


def write_interpretations(table: pd.DataFrame, folder: str | Path) -> Path:
    """Write a table of `interpret` to a crosscoder's folder, where `read_latents` finds it.

    Latents that were interpreted before, and are not in the table, stay if they are of the same crosscoder.
    """
    path = Path(folder) / INTERPRETATIONS_FILENAME
    path.parent.mkdir(parents=True, exist_ok=True)
    attrs = table.attrs
    if path.exists():
        before = load_table(path)
        if before.attrs.get(CROSSCODER_SHA256) == attrs[CROSSCODER_SHA256]:
            others = before.drop(index=table.index, errors="ignore")
            table = pd.concat([others, table] if len(others) else [table]).sort_index()
            table.attrs.update(attrs)
    table.to_parquet(path)
    return path


def _joined(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    interpretations = load_table(path)
    differing = [name for name in _IDENTITY if table.attrs.get(name) != interpretations.attrs.get(name)]
    if differing or not interpretations.index.isin(table.index).all():
        raise ValueError(
            f"{path} is of another crosscoder than the {LATENTS_FILENAME} beside it: they differ in "
            f"{', '.join(differing) or 'how many latents there are'}. Delete it, or interpret these latents."
        )
    joined = table.drop(columns=interpretations.columns, errors="ignore").join(interpretations)
    joined.attrs.update({**table.attrs, "interpretation": interpretations.attrs})
    return joined
