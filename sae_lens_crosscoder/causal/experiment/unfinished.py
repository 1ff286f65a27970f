"""A folder that holds what an interrupted run has done, until it is finished."""

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from sae_lens_crosscoder.causal.forward.generation import Responses
from sae_lens_crosscoder.storage.atomic import atomic_path
from sae_lens_crosscoder.storage.tensor_files import save_tensors

_ORIGIN_FILENAME = "origin.txt"


class UnfinishedRun:
    """Makes answers and tables only if the same run has not made them before.

    Args:
        folder: what another run left there is deleted, with the folder.
        origin: all that the results depend on, as JSON: what makes two runs the same.
    """

    def __init__(self, folder: Path, origin: Any) -> None:
        self.folder = folder
        stamp, text = folder / _ORIGIN_FILENAME, hashlib.sha256(json.dumps(origin).encode()).hexdigest()
        if stamp.exists() and stamp.read_text() != text:
            self.remove()
        folder.mkdir(exist_ok=True)
        stamp.write_text(text)

    def answers(self, make: Callable[[], Responses]) -> Responses:
        path = self.folder / "answers.safetensors"
        if not path.exists():
            save_tensors(vars(make()), path)
        return Responses(**load_file(path))

    def table(self, name: str, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
        """A table, and its `.attrs` as far as JSON holds them."""
        path = self.folder / f"{name}.parquet"
        if not path.exists():
            with atomic_path(path) as partial:
                make().to_parquet(partial)
        return pd.read_parquet(path)

    def remove(self) -> None:
        """When all is written."""
        shutil.rmtree(self.folder)
