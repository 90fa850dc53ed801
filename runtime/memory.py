"""How much memory this process may still take, and memory that is not taken before it is written."""

from __future__ import annotations

import mmap
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from lutra.runtime.errors import OutOfMemoryError

__all__ = ["available", "require", "zeros"]

_CGROUP = Path("/sys/fs/cgroup")


def available() -> int | None:
    """Bytes that can be taken without swapping, within the control group's limit; None where nothing tells."""
    found = [n for n in (_from_meminfo(), _from_cgroup()) if n is not None]
    if found:
        return min(found)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def require(nbytes: int, purpose: str, hint: str | None = None) -> None:
    """Raise OutOfMemoryError, with the numbers, if nbytes are more than there is."""
    free = available()
    if free is not None and nbytes > free:
        raise OutOfMemoryError(f"{purpose} needs {nbytes / 1e9:.2f} GB, {free / 1e9:.2f} GB are free", hint)


def zeros(nbytes: int) -> np.ndarray:
    """Zeros, uint8 [nbytes], that take a page where one is first written, and no huge one, as numpy's own would.

    They begin at a page. Raises OutOfMemoryError where the system grants no such range.
    """
    private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS if hasattr(mmap, "MAP_PRIVATE") else 0
    try:
        memory = mmap.mmap(-1, nbytes, flags=private) if private else mmap.mmap(-1, nbytes)
    except (OSError, OverflowError) as error:
        raise OutOfMemoryError(f"{nbytes / 1e9:.2f} GB of memory are not to be had: {error}") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with suppress(OSError):  # a system without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.uint8)


def _from_meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def _from_cgroup() -> int | None:
    try:
        limit = int((_CGROUP / "memory.max").read_text())
        return max(0, limit - int((_CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # no such file, or "max"
        return None
