"""Settings of a command's process: how it keeps freed memory, and how its threads wait."""

import ctypes
import os
import sys

# glibc's <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BLOCK, _OLD_KEPT_BLOCK = 2**28, 2**25  # bytes; glibc before 2.35 takes at most the second
_KEPT_HEAP = 2**31 - 1
_SPIN_COUNT = 10_000


def tune_process() -> None:
    """Keep freed memory, and let OpenMP's threads sleep while they wait; before torch is imported.

    By default glibc returns every freed tensor to the system, which costs a page fault per 4 KiB of the next one, and
    threads spin for milliseconds at the end of each operation, which starves other processes. Only commands do this:
    a library must not change the process of its caller. Settings in the environment have precedence.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(_SPIN_COUNT))
    if sys.platform == "linux" and not any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if set_option is None:
        return
    if not set_option(_M_MMAP_THRESHOLD, _KEPT_BLOCK):
        set_option(_M_MMAP_THRESHOLD, _OLD_KEPT_BLOCK)
    set_option(_M_TRIM_THRESHOLD, _KEPT_HEAP)
