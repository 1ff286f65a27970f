"""Writes files atomically: a file has its name only once it is complete and on disk."""

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from sae_lens_crosscoder.storage.locks import lock

PARTIAL_SUFFIX, REPLACED_SUFFIX = ".partial", ".replaced"


@contextmanager
def atomic_path(path: Path) -> Generator[Path]:
    """Yield a temporary path, which replaces `path` when the block ends and is deleted when it raises.

    A second writer of the same file waits for the first.
    """
    partial = path.with_name(path.name + PARTIAL_SUFFIX)
    with _only_writer_of(partial):
        try:
            yield partial
            synchronise(partial)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)  # frees the space, which a full disk needs
            raise
    synchronise(path.parent)  # or a power cut may lose the new name


@contextmanager
def _only_writer_of(partial: Path) -> Generator[None]:
    """Create a temporary file, empty, and hold it against other writers."""
    while True:
        descriptor = os.open(partial, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            lock(descriptor, wait=True)
            # The writer before may have renamed the file meanwhile: then another has this name, or none.
            if partial.exists() and partial.stat().st_ino == os.fstat(descriptor).st_ino:
                os.truncate(descriptor, 0)
                yield
                return
        finally:
            os.close(descriptor)


@contextmanager
def atomic_write(path: Path) -> Generator[BinaryIO]:
    """Open a binary file that replaces `path` when the block ends without an error."""
    with atomic_path(path) as partial, partial.open("wb") as file:
        yield file


def write_text_atomically(text: str, path: Path) -> None:
    """Write a UTF-8 text file, complete or not at all."""
    with atomic_write(path) as file:
        file.write(text.encode())


@contextmanager
def atomic_folder(folder: Path) -> Generator[Path]:
    """Yield an empty temporary folder, which replaces `folder` when the block ends and is deleted when it raises."""
    partial = folder.with_name(folder.name + PARTIAL_SUFFIX)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_folder(partial, folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def replacing_files(folder: Path, order: Callable[[str], Any]) -> Generator[Path]:
    """Yield an empty temporary folder, whose files go to `folder` when the block ends; other files there stay.

    Args:
        order: sort key for the names of the files, of which a process that dies may have moved only the first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / PARTIAL_SUFFIX
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        files = sorted(partial.iterdir(), key=lambda path: order(path.name))
        for path in files:
            synchronise(path)
        for path in files:
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    synchronise(folder)


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
