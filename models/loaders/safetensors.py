"""safetensors files: a reader that trusts no byte, and a writer that streams and never half-writes.

The file is a u64 header length (little endian), a JSON header
``{name: {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {str: str}}`` and the
tensors' bytes, with no hole between them. Source: the format section of the safetensors README.
"""

from __future__ import annotations

import json
import os
import reprlib
import shutil
import struct
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np

from lutra.models.loaders.checkpoint import Entry
from lutra.models.loaders.mapped import MappedFile
from lutra.models.loaders.tensor import DTYPES
from lutra.runtime.errors import CorruptModelError, LutraError, UnsupportedModelError
from lutra.runtime.formats import BF16

__all__ = ["ALIGN", "Data", "SafetensorsFile", "write_safetensors"]

ALIGN = 64  # a cache line, and the widest vector load
MAX_HEADER = 100_000_000  # the reference implementation's own limit
MAX_RANK = 8
MAX_ELEMENTS = 2**60  # keeps byte counts inside numpy's signed 64 bits

Data = np.ndarray | bytes | Callable[[], "np.ndarray | bytes | Iterable[np.ndarray | bytes]"]


class SafetensorsFile:
    """One mapped .safetensors file: ``entries`` by name, ``metadata`` strings.

    Every claim of the header is checked before anything is made of it. Raises CorruptModelError
    for a file that breaks the format, UnsupportedModelError for an element type unknown here.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = MappedFile(path)
        header, self._data_start = self._read_header()
        metadata = header.pop("__metadata__", None)
        if metadata is not None and not _is_string_dict(metadata):
            self._corrupt("its __metadata__ is not a table of strings")
        self.metadata: dict[str, str] = metadata or {}
        self.entries: dict[str, Entry] = {}
        ranges = [self._add(name, claim) for name, claim in header.items()]
        self._check_cover(ranges)

    def close(self) -> None:
        self._file.close()

    def release(self) -> None:
        self._file.release()

    def here_and_there(self) -> AbstractContextManager[None]:
        return self._file.here_and_there()

    def _read_header(self) -> tuple[dict[str, Any], int]:
        if self._file.size < 8:
            self._corrupt(f"it has only {self._file.size} bytes")
        (length,) = struct.unpack("<Q", self._file.read(0, 8))
        if length > MAX_HEADER:
            self._corrupt(f"its header claims {length} bytes, so it is no safetensors file")
        if 8 + length > self._file.size:
            self._truncated(8 + length - self._file.size)
        return self._parse(self._file.read(8, length)), 8 + length

    def _parse(self, text: bytes) -> dict[str, Any]:
        try:
            header = json.loads(text.decode(), object_pairs_hook=_unique, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            self._corrupt(f"its header is not sound JSON ({_short(str(error))})", error)
        if not isinstance(header, dict):
            self._corrupt("its header is not a JSON object")
        return header

    def _add(self, name: str, claim: Any) -> tuple[int, int]:
        """Check one tensor's claims, make its entry, and return its byte range."""
        dtype_name, shape, (begin, end) = self._claims(name, claim)
        if dtype_name not in DTYPES:
            raise UnsupportedModelError(
                f"{self.path} stores {_short(name)} as {_short(dtype_name)}, a type that lutra cannot read"
            )
        dtype = DTYPES[dtype_name]
        if prod(shape) * dtype.itemsize != end - begin:
            self._corrupt(f"{_short(name)} has {end - begin} bytes for shape {shape} of {dtype_name}")

        def read() -> np.ndarray:
            array = self._file.array(self._data_start + begin, dtype, shape)
            return array.view(BF16) if dtype_name == "BF16" else array

        self.entries[name] = Entry(dtype_name, shape, read)
        return begin, end

    def _claims(self, name: str, claim: Any) -> tuple[str, tuple[int, ...], tuple[int, int]]:
        if not isinstance(claim, dict) or not claim.keys() >= {"dtype", "shape", "data_offsets"}:
            self._corrupt(f"{_short(name)} is not described by dtype, shape and data_offsets")
        dtype, shape, offsets = claim["dtype"], claim["shape"], claim["data_offsets"]
        if not isinstance(dtype, str):
            self._corrupt(f"the dtype of {_short(name)} is not a name")
        # A dimension of 0 must not hide others so large that numpy cannot count with them.
        if not _are_counts(shape) or len(shape) > MAX_RANK or prod(max(n, 1) for n in shape) > MAX_ELEMENTS:
            self._corrupt(f"{_short(name)} has the impossible shape {_short(shape)}")
        if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
            self._corrupt(f"{_short(name)} has the impossible data_offsets {_short(offsets)}")
        return dtype, tuple(shape), (offsets[0], offsets[1])

    def _check_cover(self, ranges: list[tuple[int, int]]) -> None:
        """The byte ranges must tile the data exactly: no overlap, no hole, nothing after."""
        reached = 0
        for begin, end in sorted(ranges):
            if begin != reached:
                what = "overlap" if begin < reached else "leave a hole"
                self._corrupt(f"its tensors {what} at byte {self._data_start + begin}")
            reached = end
        excess = self._file.size - self._data_start - reached
        if excess < 0:
            self._truncated(-excess)
        if excess > 0:
            self._corrupt(f"its last {excess} bytes belong to no tensor")

    def _truncated(self, missing: int) -> NoReturn:
        raise CorruptModelError(
            f"{self.path} is cut short: its header promises {missing:,} more bytes than it has",
            "The download did not finish: download the file again.",
        )

    def _corrupt(self, what: str, cause: Exception | None = None) -> NoReturn:
        raise CorruptModelError(f"{self.path} is damaged: {what}", "Download the file again.") from cause


def _short(value: object) -> str:
    """A claim of a damaged file, cut to a length that fits an error message."""
    short = reprlib.Repr()
    short.maxstring = short.maxlong = short.maxother = 80
    return short.repr(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name appears twice")
    return table


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _is_string_dict(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


def _are_counts(value: object) -> bool:
    # bool is an int to Python, and true is no dimension
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Iterable[tuple[str, str, tuple[int, ...], Data]],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a .safetensors file whose data, and every tensor of whole cache lines, is 64-aligned.

    tensors: (name, dtype, shape, data); dtype is a name of ``tensor.DTYPES``. ``data`` is an array,
        bytes, or a function called when its turn comes that returns those or an iterable of them:
        one tensor's bytes are held at a time. Tensors whose size is a multiple of 64 bytes are
        written first, otherwise in the order given.

    The file appears under its name whole or not at all: it is written beside it, flushed to the
    disk, then renamed. Raises ValueError for tensors that contradict their description, LutraError
    when the disk is too full or refuses the write.
    """
    path = Path(path)
    plan = _Plan(list(tensors), metadata or {})
    temporary = path.with_name(f".{path.name}.{os.urandom(4).hex()}.tmp")
    try:
        _require_space(path.parent, plan.size)
        with temporary.open("xb") as file:
            plan.write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise LutraError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


class _Plan:
    """Where each tensor goes, decided before the first byte is written."""

    def __init__(
        self,
        tensors: list[tuple[str, str, tuple[int, ...], Data]],
        metadata: Mapping[str, str],
    ):
        sized = [(name, dtype, shape, data, _nbytes(dtype, shape)) for name, dtype, shape, data in tensors]
        sized.sort(key=lambda item: item[-1] % ALIGN != 0)
        self.parts = [(name, data, DTYPES[dtype], size) for name, dtype, _, data, size in sized]
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        end = 0
        for name, dtype, shape, _, size in sized:
            if name in header or name == "__metadata__":
                raise ValueError(f"two tensors are named {name!r}")
            begin, end = end, end + size
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGN)
        self.start = struct.pack("<Q", len(text)) + text
        self.size = len(self.start) + end

    def write(self, file: BinaryIO) -> None:
        file.write(self.start)
        for name, data, dtype, size in self.parts:
            written = sum(_write_piece(file, piece, dtype) for piece in _pieces(data))
            if written != size:
                raise ValueError(f"{name!r} gave {written} bytes where its shape needs {size}")


def _nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    if dtype not in DTYPES:
        raise ValueError(f"safetensors has no type {dtype!r}")
    return prod(shape) * DTYPES[dtype].itemsize


def _pieces(data: Data) -> Iterable[np.ndarray | bytes]:
    made = data() if callable(data) else data
    return [made] if isinstance(made, (np.ndarray, bytes)) else made


def _write_piece(file: BinaryIO, piece: np.ndarray | bytes, dtype: np.dtype) -> int:
    if not isinstance(piece, np.ndarray):
        return file.write(piece)
    if piece.dtype != dtype:
        raise ValueError(f"an array of {piece.dtype} was given where {dtype} was announced")
    # Through a view as bytes a contiguous array is written without a copy.
    return file.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)


def _require_space(folder: Path, size: int) -> None:
    free = shutil.disk_usage(folder).free
    if size > free:
        raise LutraError(
            f"{folder} has {free / 1e6:,.0f} MB free and the file needs {size / 1e6:,.0f} MB",
            "Free some space or write to another disk.",
        )


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut, where the system lets folders be opened."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
