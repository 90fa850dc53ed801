"""PyTorch's .bin files: a ZIP of raw storages and of a pickle that says which tensors look into them.

A pickle is a program. Ours is never run: its opcodes are read one by one, and only those that build dictionaries,
tuples and numbers are followed, with only PyTorch's own names for a tensor, a parameter and a storage. The storages
must lie in the file as they are, and are mapped. Source: PyTorch's notes on its serialization.
"""

from __future__ import annotations

import pickletools
import struct
import zipfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lutra.models.loaders.checkpoint import Entry
from lutra.models.loaders.mapped import MappedFile
from lutra.models.loaders.tensor import DTYPES
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import BF16

__all__ = ["TorchFile"]

MAX_PICKLE = 1 << 26  # bytes; a tensor takes about 200
MAX_RANK = 8
TYPES = {
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "DoubleStorage": "F64",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
ORDERED, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
NAMES = {ORDERED, TENSOR, PARAMETER, *(f"torch {name}" for name in TYPES)}


class TorchFile:
    """One mapped .bin file: ``entries`` by name; ``metadata``, always empty.

    Raises CorruptModelError for a file that breaks the format, UnsupportedModelError for one whose pickle wants
    anything but tensors.
    """

    def __init__(self, path: Path):
        self.path = path
        self.metadata: dict[str, str] = {}
        self._file = MappedFile(path)
        if self._file.read(0, 2) == b"\x80\x02":
            raise UnsupportedModelError(
                f"{path} is a PyTorch pickle of before version 1.6, which lutra does not read",
                "Load it with transformers and call save_pretrained: that writes safetensors.",
            )
        self._records = self._find_records()
        if self._text("byteorder", "little") != "little":
            raise UnsupportedModelError(f"{path} was written by a big-endian machine, which lutra does not read")
        self.entries = {name: self._entry(name, tensor) for name, tensor in self._tensors().items()}

    def close(self) -> None:
        self._file.close()

    def release(self) -> None:
        self._file.release()

    def here_and_there(self) -> AbstractContextManager[None]:
        return self._file.here_and_there()

    def _find_records(self) -> dict[str, tuple[int, int]]:
        """Offset and size of every record, by its name without the archive's own."""
        try:
            with zipfile.ZipFile(self.path) as archive:
                found = archive.infolist()
        except (zipfile.BadZipFile, struct.error, ValueError, OverflowError, NotImplementedError, EOFError) as error:
            self._corrupt(f"its table of contents cannot be read ({error!s:.80})")
        except OSError as error:
            self._corrupt(f"its table of contents points outside of it ({error!s:.80})")
        records, ranges = {}, []
        for record in found:
            _, slash, name = record.filename.partition("/")
            if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size or not slash:
                self._corrupt(f"{record.filename!r:.80} is not stored as it is")
            if name in records:
                self._corrupt(f"{name!r:.80} is in it twice")
            begin = self._data_at(record.header_offset)
            if begin + record.file_size > self._file.size:
                self._corrupt(f"{name!r:.80} is cut short")
            records[name] = begin, record.file_size
            ranges.append((record.header_offset, begin + record.file_size))
        ranges.sort()
        if any(end > begin for (_, end), (begin, _) in pairwise(ranges)):
            self._corrupt("its records overlap")
        return records

    def _data_at(self, header: int) -> int:
        """Where a record's bytes begin: behind its own header, a name and more."""
        start = self._file.read(header, 30)
        if header < 0 or len(start) < 30 or start[:4] != b"PK\x03\x04":
            self._corrupt("a record is not where its table of contents says")
        name, more = struct.unpack("<HH", start[26:])
        return header + 30 + name + more

    def _text(self, name: str, default: str) -> str:
        begin, size = self._records.get(name, (0, 0))
        return self._file.read(begin, min(size, 16)).decode("ascii", "replace") if size else default

    def _tensors(self) -> dict[str, _Tensor]:
        if "data.pkl" not in self._records:
            self._corrupt("it has no data.pkl")
        begin, size = self._records["data.pkl"]
        if size > MAX_PICKLE:
            self._corrupt(f"its data.pkl has {size} bytes")
        try:
            whole = _Reader(self._file.read(begin, size)).value()
        except _Forbidden as error:
            raise UnsupportedModelError(
                f"{self.path} holds more than tensors: its pickle asks for {error}, and lutra runs no code from files",
                "Load it with transformers and call save_pretrained: that writes safetensors.",
            ) from None
        except (ValueError, TypeError, IndexError, KeyError, AttributeError, RecursionError) as error:
            self._corrupt(f"its pickle makes no sense ({type(error).__name__}: {error!s:.80})")
        if not isinstance(whole, dict) or not all(isinstance(name, str) for name in whole):
            self._corrupt("it holds no table of tensors")
        for name, value in whole.items():
            if not isinstance(value, _Tensor):
                self._corrupt(f"{name!r:.80} is no tensor")
        return whole

    def _entry(self, name: str, tensor: _Tensor) -> Entry:
        storage, shape = tensor.storage, tensor.shape
        dtype = DTYPES[storage.dtype]
        begin, size = self._records.get(f"data/{storage.key}", (0, -1))
        if size != storage.count * dtype.itemsize:
            self._corrupt(f"the storage of {name!r:.80} does not have {storage.count} elements of {storage.dtype}")
        last = tensor.offset + sum((n - 1) * step for n, step in zip(shape, tensor.strides, strict=True))
        if 0 not in shape and (last >= storage.count or prod(shape) > storage.count):
            self._corrupt(f"{name!r:.80} of shape {shape} reaches beyond its storage")
        start = begin + tensor.offset * dtype.itemsize

        def read() -> np.ndarray:
            if tensor.contiguous:
                array = self._file.array(start, dtype, shape)
            else:
                flat = self._file.array(start, dtype, (last + 1 - tensor.offset,))
                steps = [step * dtype.itemsize for step in tensor.strides]
                array = np.ascontiguousarray(np.lib.stride_tricks.as_strided(flat, shape, steps, writeable=False))
            return array.view(BF16) if storage.dtype == "BF16" else array

        return Entry(storage.dtype, shape, read)

    def _corrupt(self, what: str) -> NoReturn:
        raise CorruptModelError(f"{self.path} is damaged: {what}", "Download the file again.") from None


@dataclass(frozen=True)
class _Name:
    """A global that the pickle names: only ever compared."""

    name: str


@dataclass(frozen=True)
class _Storage:
    dtype: str
    key: str
    count: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        due = [prod(self.shape[i + 1 :]) for i in range(len(self.shape))]
        return 0 in self.shape or all(n == 1 or a == b for n, a, b in zip(self.shape, self.strides, due, strict=True))


class _Forbidden(Exception):
    """What the pickle asks for that no table of tensors needs."""


_MARK = object()


class _Reader:
    """The pickle's stack and memo. Every mistake in it is one of Python's own errors, or _Forbidden."""

    def __init__(self, data: bytes):
        self.data, self.stack, self.memo = data, [], {}  # type: ignore[var-annotated]

    def value(self) -> Any:
        """The object that the pickle describes."""
        for opcode, arg, _ in pickletools.genops(self.data):
            if opcode.name == "STOP":
                return self.stack.pop()
            if opcode.name in _CONSTANTS:
                self.stack.append(_CONSTANTS[opcode.name]())
            elif opcode.name in _LITERALS:
                self.stack.append(arg)
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, arg)
            elif opcode.name not in ("PROTO", "FRAME"):
                raise _Forbidden(f"the operation {opcode.name}")
        raise ValueError("it does not end")

    def marked(self) -> list[Any]:
        """All that was put on the stack since the last mark."""
        for at in range(len(self.stack) - 1, -1, -1):
            if self.stack[at] is _MARK:
                found = self.stack[at + 1 :]
                del self.stack[at:]
                return found
        raise ValueError("no mark")

    def put(self, at: Any) -> None:
        self.memo[len(self.memo) if at is None else at] = self.stack[-1]

    def get(self, at: Any) -> None:
        self.stack.append(self.memo[at])

    def last(self, count: int) -> tuple[Any, ...]:
        """So many values from the top of the stack."""
        if len(self.stack) < count:
            raise ValueError("too few values")
        found = tuple(self.stack[-count:])
        del self.stack[-count:]
        return found

    def name(self, name: str) -> None:
        if name not in NAMES:
            raise _Forbidden(f"{name.replace(' ', '.')!r:.80}")
        self.stack.append(_Name(name))

    def items(self, pairs: list[Any]) -> None:
        table = self.stack[-1]
        if type(table) is not dict or len(pairs) % 2:
            raise ValueError("pairs without a table")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise ValueError("a key that is no name")
            table[key] = value

    def extend(self, values: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise ValueError("values without a list")
        self.stack[-1].extend(values)

    def storage(self) -> None:
        ((kind, name, key, _, count),) = self.last(1)
        if kind != "storage" or not isinstance(name, _Name) or not isinstance(key, str) or not _is_count(count):
            raise ValueError("not a storage")
        self.stack.append(_Storage(TYPES[name.name.removeprefix("torch ")], key, count))

    def call(self) -> None:
        function, args = self.last(2)
        if function == _Name(ORDERED) and args == ():
            self.stack.append({})
        elif function == _Name(TENSOR):
            self.stack.append(_tensor(*args[:4]))
        elif function == _Name(PARAMETER) and isinstance(args[0], _Tensor):
            self.stack.append(args[0])
        else:
            raise ValueError("a call of what is no function")


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any) -> _Tensor:
    counts = isinstance(shape, tuple) and isinstance(strides, tuple) and len(shape) == len(strides) <= MAX_RANK
    if not isinstance(storage, _Storage) or not counts or not all(map(_is_count, (offset, *shape, *strides))):
        raise ValueError("not a tensor")
    return _Tensor(storage, offset, shape, strides)


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**48


_CONSTANTS: dict[str, Callable[[], Any]] = {
    "MARK": lambda: _MARK,
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_ACTIONS: dict[str, Callable[[_Reader, Any], Any]] = {
    "GLOBAL": _Reader.name,
    "BINPUT": _Reader.put,
    "LONG_BINPUT": _Reader.put,
    "MEMOIZE": _Reader.put,
    "BINGET": _Reader.get,
    "LONG_BINGET": _Reader.get,
    "TUPLE": lambda r, _: r.stack.append(tuple(r.marked())),
    "TUPLE1": lambda r, _: r.stack.append(r.last(1)),
    "TUPLE2": lambda r, _: r.stack.append(r.last(2)),
    "TUPLE3": lambda r, _: r.stack.append(r.last(3)),
    "SETITEM": lambda r, _: r.items(list(r.last(2))),
    "SETITEMS": lambda r, _: r.items(r.marked()),
    "APPEND": lambda r, _: r.extend(list(r.last(1))),
    "APPENDS": lambda r, _: r.extend(r.marked()),
    "BINPERSID": lambda r, _: r.storage(),
    "REDUCE": lambda r, _: r.call(),
    "BUILD": lambda r, _: r.last(1),  # attributes of a dictionary: nothing that a tensor needs
}
