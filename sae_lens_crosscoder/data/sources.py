"""Rows of datasets: the sources of a mix, a run's own dataset, and the split into training and held-out rows."""

import copy
import glob
import math
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from sae_lens_crosscoder.data.mix import MixSource
from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, tiny_dataset

Rows = Dataset | IterableDataset

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_COMPRESSION = {".gz", ".zst", ".xz", ".bz2"}
# Endings of files of other types, which are no names of datasets on the Hub either.
_OTHER_ENDINGS = {".csv", ".tsv", ".arrow", ".feather", ".md", ".zip", ".tar", ".pkl", ".pt", ".npy", ".xlsx"}


def load_rows(dataset_path: str, *, streaming: bool, n_tokens: int, n_held_out_rows: int, seed: int) -> Rows:
    """Load rows with a `text`, `tokens`, `input_ids` or conversation column, as SAELens's store reads them.

    Args:
        dataset_path: the built-in `tiny-mix`, a folder made by `Dataset.save_to_disk`, or anything that
            `datasets.load_dataset` takes.
        n_tokens, n_held_out_rows, seed: size and seed of the built-in dataset.
    """
    if dataset_path == TINY_DATASET:
        return tiny_dataset(math.ceil(n_tokens / TINY_CONTEXT_SIZE) + n_held_out_rows, seed=seed)
    if dataset_path.startswith("tiny-"):
        raise ValueError(f"Unknown built-in dataset {dataset_path!r}. The only one is {TINY_DATASET!r}.")
    if not dataset_path:
        raise ValueError(f"dataset_path is empty. Name a dataset, or use the built-in {TINY_DATASET!r}.")
    if Path(dataset_path).is_file():
        raise ValueError(
            f"dataset_path={dataset_path!r} is a file. Only a mix reads files, even a single one: "
            f"mix=DataMix([MixSource({dataset_path!r})])."
        )
    if _is_path(dataset_path) and not Path(dataset_path).exists():
        raise ValueError(f"There is no file or folder at dataset_path={dataset_path!r}. Check the path.")
    if (Path(dataset_path) / "state.json").exists():
        return load_from_disk(dataset_path)  # pyright: ignore[reportReturnType]  (`state.json` marks a single split)
    return load_dataset(dataset_path, split="train", streaming=streaming)  # pyright: ignore[reportReturnType]


def load_source(source: MixSource) -> IterableDataset:
    """Open a mix's source, from the Hub or from files; rows are read as they are needed.

    Raises:
        ValueError: for a file that is missing, empty or of an unsupported type.
        OSError: for a dataset that cannot be reached.
    """
    folder = Path(source.path)
    if (folder / "state.json").exists():
        return load_from_disk(folder).to_iterable_dataset()  # pyright: ignore[reportAttributeAccessIssue]
    files = _files(source)
    if not files:
        rows = load_dataset(source.path, name=source.config, split=source.split, streaming=True)
    else:
        reader = _reader(source, files)
        files = [file for file in files if Path(file).stat().st_size > 0]  # the readers raise for a file of no bytes
        rows = _file_rows(reader, files)
        if rows is None:
            raise ValueError(f"Source {source.name!r}: {source.path!r} is empty. Check the file; it must have rows.")
    return rows  # pyright: ignore[reportReturnType]  (a single split)


def _file_rows(reader: str, files: list[str]) -> Any:
    """Rows of the files; None if they have none."""
    try:
        rows = load_dataset(reader, data_files=files, split="train", streaming=True) if files else ()
        return None if next(iter(rows), None) is None else rows
    except StopIteration:  # the readers' answer for compressed files of nothing
        return None


def _files(source: MixSource) -> list[str]:
    """The files that the path names, sorted; empty for a folder or a dataset on the Hub."""
    files = sorted(path for path in glob.glob(source.path, recursive=True) if Path(path).is_file())
    if not files and (glob.has_magic(source.path) or _is_path(source.path)) and not Path(source.path).is_dir():
        raise ValueError(f"Source {source.name!r}: no file matches {source.path!r}. Check the path.")
    return files


def _is_path(name: str) -> bool:
    """True for a name that can only be a file or folder, not a dataset on the Hub, `name` or `owner/name`."""
    if "://" in name:
        return False
    is_local = name.startswith((".", "~")) or name.endswith("/") or Path(name).is_absolute() or name.count("/") > 1
    return is_local or _suffix(name) in {*_READERS, *_OTHER_ENDINGS}


def _reader(source: MixSource, files: list[str]) -> str:
    suffixes = {_suffix(file) for file in files}
    readers = {_READERS.get(suffix) for suffix in suffixes}
    reader = readers.pop()
    if readers or reader is None:
        raise ValueError(
            f"Source {source.name!r}: cannot read files ending in {sorted(suffixes)} together. Give files of one "
            f"type: {', '.join(_READERS)}."
        )
    return reader


def _suffix(path: str) -> str:
    """The ending that names a file's type, compressed or not.

    >>> _suffix("web-00001.jsonl.gz"), _suffix("HuggingFaceFW/fineweb")
    ('.jsonl', '')
    """
    name = Path(path)
    return (name.with_suffix("") if name.suffix in _COMPRESSION else name).suffix.lower()


def every_nth_row(rows: IterableDataset, n: int, first: int) -> IterableDataset:
    """Every n-th row from `first` on: the disjoint share of one of n data-parallel processes.

    Not by `split_dataset_by_node`, which deals out whole files where it can, and would then skip the held-out rows in
    every file instead of in the first.

    >>> rows = Dataset.from_dict({"tokens": [[1], [2], [3], [4]]}).to_iterable_dataset()
    >>> [row["tokens"] for row in every_nth_row(rows, 2, first=1)]
    [[2], [4]]

    Raises:
        ValueError: if the share is empty.
    """
    if n == 1:
        return rows

    def is_in_share(_row: Any, index: int) -> bool:
        return index % n == first

    share = rows.filter(is_in_share, with_indices=True)
    if next(iter(share), None) is None:
        raise ValueError(f"Fewer than {first + 1} training rows for {n} processes. Use fewer processes or more rows.")
    return share


def hold_out(rows: Rows, n_held_out_rows: int) -> tuple[IterableDataset, IterableDataset]:
    """Split rows into (training, held-out), which never share a row; the first rows are held out.

    >>> train, held_out = hold_out(Dataset.from_dict({"tokens": [[1], [2], [3]]}), 1)
    >>> [row["tokens"] for row in train], [row["tokens"] for row in held_out]
    ([[2], [3]], [[1]])
    """
    if n_held_out_rows < 0:
        raise ValueError(f"n_held_out_rows={n_held_out_rows} must not be negative.")
    if next(iter(rows), None) is None:
        raise ValueError("The dataset is empty: it has no rows to train on.")
    # An iterable dataset also avoids SAELens's warning, which compares a number of rows with a number of tokens. It
    # cannot have a format of selected columns, which SAELens's own runner leaves on a dataset passed to it.
    iterable = rows if isinstance(rows, IterableDataset) else rows.with_format(None).to_iterable_dataset()
    # A copy, because `datasets` keeps the position of an iteration in the object.
    train, held_out = iterable.skip(n_held_out_rows), copy.deepcopy(iterable).take(n_held_out_rows)
    if next(iter(train), None) is None:
        raise ValueError(
            f"n_held_out_rows={n_held_out_rows} takes the whole dataset, so no rows are left to train on. Hold out "
            "fewer rows or pass a larger dataset."
        )
    return train, held_out
