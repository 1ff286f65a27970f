"""Training metrics that reach a file and a table whether or not W&B is on."""

import json
import math
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path

import pandas as pd


class MetricsLog:
    """Rows of named numbers, kept in memory and appended to a JSON-lines file; an undefined number is null there.

    >>> log = MetricsLog(None)
    >>> log.write({"step": 1, "l0": 2.5})
    >>> log.table().l0.tolist()
    [2.5]
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = None if path is None else Path(path)
        self.rows: list[Mapping[str, float | int]] = []

    def start_from(self, rows: Iterable[Mapping[str, float | int]]) -> None:
        """Go on behind these rows, whatever the file holds by now."""
        self.rows = []
        if self.path is not None:
            self.path.unlink(missing_ok=True)
        for row in rows:
            self.write(row)

    def write(self, row: Mapping[str, float | int]) -> None:
        """Keep a row; a file that cannot be written ends no training, so that a warning says so once."""
        self.rows.append(row)
        if self.path is None:
            return
        strict = {name: value if math.isfinite(value) else None for name, value in row.items()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(strict) + "\n")
        except OSError as error:
            warnings.warn(f"{self.path} cannot be written ({error}). The rows stay in `history`.", stacklevel=2)
            self.path = None

    def table(self) -> pd.DataFrame:
        return pd.DataFrame(self.rows)
