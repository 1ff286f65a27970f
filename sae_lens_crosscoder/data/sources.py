"""The rows of one source of a mix, from the Hub or from files, read as they are needed."""

import glob
from pathlib import Path

from datasets import IterableDataset, load_dataset, load_from_disk

from sae_lens_crosscoder.data.mix import MixSource

_READERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".txt": "text"}
_COMPRESSION = {".gz", ".zst", ".xz", ".bz2"}


def source_rows(source: MixSource) -> IterableDataset:
    """The source's rows, of which none is read yet.

    Raises:
        ValueError: for a file that is not there or of a kind that is not read.
        OSError: for a dataset that cannot be reached.
    """
    folder = Path(source.path)
    if (folder / "state.json").exists():
        return load_from_disk(folder).to_iterable_dataset()  # pyright: ignore[reportAttributeAccessIssue]
    files = _files(source)
    if not files:
        rows = load_dataset(source.path, name=source.config, split=source.split, streaming=True)
    else:
        rows = load_dataset(_reader(source, files), data_files=files, split="train", streaming=True)
    return rows  # pyright: ignore[reportReturnType]  (a single split)


def _files(source: MixSource) -> list[str]:
    """The files that the path names, in order; none for a folder or a dataset on the Hub."""
    files = sorted(path for path in glob.glob(source.path, recursive=True) if Path(path).is_file())
    names_files = glob.has_magic(source.path) or Path(source.path).is_absolute() or _suffix(source.path) in _READERS
    if not files and names_files and not Path(source.path).is_dir():
        raise ValueError(f"Source {source.name!r}: there is no file {source.path!r}.")
    return files


def _reader(source: MixSource, files: list[str]) -> str:
    suffixes = {_suffix(file) for file in files}
    readers = {_READERS.get(suffix) for suffix in suffixes}
    reader = readers.pop()
    if readers or reader is None:
        raise ValueError(
            f"Source {source.name!r}: files ending in {sorted(suffixes)} cannot be read together; give files of one "
            f"kind, of {', '.join(_READERS)}."
        )
    return reader


def _suffix(path: str) -> str:
    """The ending that tells what a file holds, whether or not it is compressed.

    >>> _suffix("web-00001.jsonl.gz"), _suffix("HuggingFaceFW/fineweb")
    ('.jsonl', '')
    """
    name = Path(path)
    return (name.with_suffix("") if name.suffix in _COMPRESSION else name).suffix.lower()
