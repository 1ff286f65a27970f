"""Tables on disk, in Parquet or CSV."""

from pathlib import Path

import pandas as pd


def load_table(path: Path) -> pd.DataFrame:
    """Read a Parquet file, or a CSV file whose first column is the index; a ValueError names a file that is neither."""
    try:
        if path.suffix == ".parquet":
            return pd.read_parquet(path)
        table = pd.read_csv(path)
        if not isinstance(table.index, pd.RangeIndex):
            raise ValueError("its rows are longer than its header")
        return table.set_index(table.columns[0])
    except Exception as error:  # pandas and pyarrow raise errors of any type for damaged bytes
        raise ValueError(f"{path} cannot be read as a table: {error!s:.200}") from error
