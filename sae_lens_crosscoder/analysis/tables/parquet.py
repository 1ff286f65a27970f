"""Tables with one row per latent, in Parquet files with a manifest and a checksum of both."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from sae_lens_crosscoder.storage.atomic import atomic_path
from sae_lens_crosscoder.storage.checksums import digest

_MANIFEST, _SHA256 = b"sae_lens_crosscoder.manifest", b"sae_lens_crosscoder.sha256"
_INDEX = "latent"


def save_table(table: pd.DataFrame, manifest: dict[str, Any], path: Path) -> None:
    """Save a table with one row per latent, and its manifest in the schema metadata."""
    arrow = pa.Table.from_pandas(table.rename_axis(_INDEX), preserve_index=True)
    text = json.dumps(manifest)
    metadata = {_MANIFEST: text.encode(), _SHA256: _checksum(_frame(arrow), text).encode()}
    with atomic_path(path) as partial:
        pq.write_table(arrow.replace_schema_metadata({**(arrow.schema.metadata or {}), **metadata}), partial)


def load_table(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Load a table of `save_table` and its manifest.

    Raises:
        ValueError: for a file that is not such a table, or whose checksum does not match.
    """
    try:
        arrow: pa.Table = pq.read_table(path)
        metadata: dict[bytes, bytes] = arrow.schema.metadata or {}
        text, sha256 = metadata[_MANIFEST].decode(), metadata[_SHA256].decode()
        table = _frame(arrow)
        found = _checksum(table, text)  # where damaged texts show
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"{path} is not a latent table of this package: {error!s:.200}") from error
    if sha256 != found:
        raise ValueError(f"{path}: checksum mismatch. The file was corrupted or edited. Make the table again.")
    return table, json.loads(text)


def save_tables(tables: Mapping[str, pd.DataFrame], manifest: dict[str, Any], folder: str | Path) -> Path:
    """Save the tables of one result in a folder, which is created, by their file names."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    for file, table in tables.items():
        save_table(table, manifest, Path(folder, file))
    return Path(folder)


def load_tables(
    folder: str | Path, files: Mapping[str, str], call: str
) -> tuple[dict[str, pd.DataFrame], dict[str, Any]]:
    """Load the tables of one result by their names, and its manifest.

    Args:
        files: file name of each table.
        call: what to write in code to make the result, for the message about a missing file.

    Raises:
        ValueError: for a folder without the tables, or tables that are damaged or belong to different runs.
    """
    tables: dict[str, pd.DataFrame] = {}
    manifests: list[dict[str, Any]] = []
    for name, file in files.items():
        path = Path(folder, file)
        if not path.exists():
            raise ValueError(f"{folder} has no {file}. Create it with {call}.save(folder).")
        tables[name], manifest = load_table(path)
        manifests.append(manifest)
    if any(manifest != manifests[0] for manifest in manifests):
        raise ValueError(f"The tables in {folder} belong to different runs. Save the result again.")
    return tables, manifests[0]


def _frame(arrow: Any) -> pd.DataFrame:
    """Convert to pandas without pandas' own metadata, which a damaged file could spoil in any way."""
    return arrow.to_pandas(ignore_metadata=True).set_index(_INDEX)


def _checksum(table: pd.DataFrame, manifest: str) -> str:
    rows = pd.util.hash_pandas_object(table).to_numpy()
    columns = [[str(name), str(dtype)] for name, dtype in table.dtypes.items()]
    return digest([np.ascontiguousarray(rows).tobytes().hex(), columns, manifest])
