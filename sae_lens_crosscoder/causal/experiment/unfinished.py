"""A folder that keeps the parts of an interrupted run until it is finished."""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from sae_lens_crosscoder.causal.forward.responses import Responses
from sae_lens_crosscoder.storage.atomic import atomic_folder, write_text_atomically
from sae_lens_crosscoder.storage.tensor_files import save_tensors

_ORIGIN_FILENAME = "origin.txt"


class UnfinishedRun:
    """Cache of responses and tables that an interrupted run has already made.

    Args:
        folder: the cache; parts of another run in it are deleted.
        origin: everything the results depend on, as JSON; it identifies the run.
    """

    def __init__(self, folder: Path, origin: Any) -> None:
        self.folder = folder
        stamp, text = folder / _ORIGIN_FILENAME, hashlib.sha256(json.dumps(origin).encode()).hexdigest()
        if stamp.exists() and stamp.read_text() != text:
            self.remove()
        folder.mkdir(exist_ok=True)
        write_text_atomically(text, stamp)

    def responses(self, make: Callable[[], Responses]) -> Responses:
        """The saved responses, or new ones."""
        path = self.folder / "responses.safetensors"
        if not path.exists():
            tensors = {name: tensor for name, tensor in vars(make()).items() if tensor is not None}
            save_tensors(tensors, path)
        return Responses(**load_file(path))

    def tables(self, name: str, make: Callable[[], Mapping[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
        """The saved tables of one name, or new ones."""
        folder = self.folder / f"{name}.tables"
        if not folder.exists():
            with atomic_folder(folder) as partial:
                for key, table in make().items():
                    table.to_parquet(partial / f"{key}.parquet")
        return {path.stem: pd.read_parquet(path) for path in folder.glob("*.parquet")}

    def remove(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder)
