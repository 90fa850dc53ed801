"""How much memory this process may still take."""

from __future__ import annotations

import os
from pathlib import Path

from lutra.runtime.errors import OutOfMemoryError

__all__ = ["available", "require"]

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
