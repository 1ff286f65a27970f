"""Where training rows come from, and which of them are held out."""

import copy
import math
from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset, load_dataset, load_from_disk

from sae_lens_crosscoder.models.tiny import TINY_CONTEXT_SIZE, TINY_DATASET, tiny_dataset

Rows = Dataset | IterableDataset


def load_rows(dataset_path: str, *, streaming: bool, n_tokens: int, n_held_out_rows: int, seed: int) -> Rows:
    """Rows with a `text`, `tokens`, `input_ids` or conversation column, as SAELens's store reads them.

    Args:
        dataset_path: the built-in `tiny-mix`, a folder made by `Dataset.save_to_disk`, or anything that
            `datasets.load_dataset` takes.
        n_tokens, n_held_out_rows, seed: how much of the built-in dataset to generate, and from which seed.
    """
    if dataset_path == TINY_DATASET:
        return tiny_dataset(math.ceil(n_tokens / TINY_CONTEXT_SIZE) + n_held_out_rows, seed=seed)
    if dataset_path.startswith("tiny-"):
        raise ValueError(f"There is no built-in dataset {dataset_path!r}: the only one is {TINY_DATASET!r}.")
    if not dataset_path:
        raise ValueError(f"dataset_path is empty: name a dataset, or use the built-in {TINY_DATASET!r}.")
    if Path(dataset_path).is_file():
        raise ValueError(
            f"dataset_path={dataset_path!r} is a file. Files are read by a mix, even of one source: "
            f"mix=DataMix([MixSource({dataset_path!r})])."
        )
    if (Path(dataset_path) / "state.json").exists():
        return load_from_disk(dataset_path)  # pyright: ignore[reportReturnType]  (a single split, by that file)
    return load_dataset(dataset_path, split="train", streaming=streaming)  # pyright: ignore[reportReturnType]


def every_nth(rows: IterableDataset, n: int, first: int) -> IterableDataset:
    """Every n-th row from `first` on: the share of one of n processes, of which no two have a row in common.

    Not by `split_dataset_by_node`, which deals out whole files where it can, and would then skip the held-out rows in
    every one of them instead of in the first.

    >>> rows = Dataset.from_dict({"tokens": [[1], [2], [3], [4]]}).to_iterable_dataset()
    >>> [row["tokens"] for row in every_nth(rows, 2, first=1)]
    [[2], [4]]

    Raises:
        ValueError: if there is none.
    """
    if n == 1:
        return rows

    def is_own(_row: Any, index: int) -> bool:
        return index % n == first

    own = rows.filter(is_own, with_indices=True)
    if next(iter(own), None) is None:
        raise ValueError(f"Fewer than {first + 1} rows are left to train on, too few for {n} processes: use fewer.")
    return own


def hold_out(rows: Rows, n_held_out_rows: int) -> tuple[IterableDataset, IterableDataset]:
    """(rows to train on, rows kept out), which never share a row.

    >>> train, held_out = hold_out(Dataset.from_dict({"tokens": [[1], [2], [3]]}), 1)
    >>> [row["tokens"] for row in train], [row["tokens"] for row in held_out]
    ([[2], [3]], [[1]])
    """
    if n_held_out_rows < 0:
        raise ValueError(f"n_held_out_rows={n_held_out_rows} must not be negative.")
    if next(iter(rows), None) is None:
        raise ValueError("The dataset is empty: it has no rows to train on.")
    # An iterable dataset also spares SAELens's warning that compares a number of rows with a number of tokens. It takes
    # no format of selected columns, which is what SAELens's own runner leaves on a dataset it was given.
    iterable = rows if isinstance(rows, IterableDataset) else rows.with_format(None).to_iterable_dataset()
    # A copy, because `datasets` keeps the place of an iteration in what both would share.
    train, held_out = iterable.skip(n_held_out_rows), copy.deepcopy(iterable).take(n_held_out_rows)
    if next(iter(train), None) is None:
        raise ValueError(
            f"Nothing is left to train on: n_held_out_rows={n_held_out_rows} takes the whole dataset. Hold out fewer "
            "rows or give more."
        )
    return train, held_out
