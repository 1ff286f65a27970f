"""Writes files atomically: a file has its name only once it is complete and on disk."""

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

PARTIAL_SUFFIX, REPLACED_SUFFIX = ".partial", ".replaced"


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path, which replaces `path` when the block ends and is deleted when it raises."""
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    try:
        yield partial
        synchronise(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)  # frees the space, which a full disk needs
        raise
    synchronise(path.parent)  # or a power cut may lose the new name


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends without an error."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file


def write_text_atomically(text: str, path: Path) -> None:
    """Write a UTF-8 text file, complete or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


def replace_folder(partial: Path, folder: Path) -> None:
    """Give a complete folder its name; the folder that had the name stays until then, and is then deleted."""
    for path in (*partial.rglob("*"), partial):
        synchronise(path)
    replaced = folder.with_name(folder.name + REPLACED_SUFFIX)
    if folder.exists():
        shutil.rmtree(replaced, ignore_errors=True)
        folder.rename(replaced)
    partial.rename(folder)
    synchronise(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def synchronise(path: Path) -> None:
    """Flush a file, or the names in a folder, to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
