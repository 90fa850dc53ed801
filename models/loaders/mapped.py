"""A weight file's bytes, mapped read only, so that nothing is read before it is used."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path

import numpy as np

from lutra.runtime.errors import CorruptModelError, LutraError, ModelClosedError

__all__ = ["MappedFile", "first_bytes"]

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


class MappedFile:
    """One file, mapped read only. Views outlive ``close()``: the mapping goes with the last one."""

    def __init__(self, path: Path):
        """Map ``path``. Raises CorruptModelError for a file that can hold no weights at all."""
        self.path = path
        try:
            self.size = path.stat().st_size
            if self.size == 0:
                raise CorruptModelError(f"{path} is empty", "Download it again.")
            with path.open("rb") as file:
                self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise LutraError(f"{path} cannot be read: {error}") from error
        self._refuse_stand_ins()

    def _refuse_stand_ins(self) -> None:
        """Name the two things that downloads often leave in a weight file's place."""
        start = self.read(0, min(self.size, 64))
        if start.startswith(LFS_POINTER):
            raise CorruptModelError(
                f"{self.path} is a git-lfs pointer, not the weights themselves",
                f"Run `git lfs pull` in {self.path.parent}.",
            )
        if start.lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
            raise CorruptModelError(
                f"{self.path} is a web page, not weights",
                "The server answered with a page (a login, an error): download the file again.",
            )

    def read(self, offset: int, count: int) -> bytes:
        """A copy of ``count`` bytes from ``offset``, fewer where the file ends."""
        return self._open()[offset : offset + count]

    def array(self, offset: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
        """A read-only array over the file; a copy only where the file misaligns its elements.

        The caller has checked that the range lies inside the file.
        """
        count = prod(shape)
        if count == 0:  # frombuffer refuses empty ranges
            return np.empty(shape, dtype)
        array = np.frombuffer(self._open(), dtype, count, offset).reshape(shape)
        if not array.flags.aligned:
            array = array.copy()
            array.flags.writeable = False
        return array

    def release(self) -> None:
        """Give the pages read so far back to the system, which reads them again when they are needed."""
        self._advise("MADV_DONTNEED")  # nothing is lost: the mapping is read only

    @contextmanager
    def here_and_there(self) -> Iterator[None]:
        """What is read meanwhile lies far apart: the system reads nothing around it."""
        self._advise("MADV_RANDOM")
        yield
        self._advise("MADV_NORMAL")

    def _advise(self, name: str) -> None:
        if hasattr(mmap, name):  # not on Windows
            self._open().madvise(getattr(mmap, name))

    def close(self) -> None:
        """Let go of the file; later reads raise ModelClosedError."""
        mapping, self._map = self._map, None
        try:
            if mapping is not None:
                mapping.close()
        except BufferError:  # arrays still look into it, and keep it alive
            pass

    def _open(self) -> mmap.mmap:
        if self._map is None:
            raise ModelClosedError(f"{self.path} was closed")
        return self._map


def first_bytes(path: Path, count: int) -> bytes:
    """Up to ``count`` bytes from the start of a file. Raises LutraError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise LutraError(f"{path} cannot be read: {error}") from error
