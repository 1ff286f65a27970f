"""Locks on open files and folders, which the system releases when a process ends, however it ends."""

import fcntl
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file or folder; False if another holds it. A file system without locks locks nothing."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # as some network file systems answer
        return True
    return True


@contextmanager
def only_writer(folder: str | Path, remedy: str) -> Generator[None]:
    """Hold a folder against other runs on this machine; it is created if it is missing.

    Raises:
        ValueError: if another run holds it.
    """
    if not Path(folder).is_dir():
        Path(folder).mkdir(parents=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        if not lock(descriptor, wait=False):
            raise ValueError(f"Another run writes to {str(folder)!r} now. {remedy}")
        yield
    finally:
        os.close(descriptor)
