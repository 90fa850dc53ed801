"""GGUF files, versions 2 and 3: metadata, a table of tensors, and their blocks; whole or split into several files.

What the metadata says in llama.cpp's words becomes a configuration and names in Hugging Face's (gguf_names.py), blocks
become matrices (ggml.py). Source: ggml's docs/gguf.md.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lutra.models.loaders import ggml, gguf_names, gguf_tokenizer, prism
from lutra.models.loaders.checkpoint import Checkpoint, Entry
from lutra.models.loaders.mapped import MappedFile, first_bytes
from lutra.models.loaders.tensor import DTYPES
from lutra.runtime.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from lutra.runtime.formats import BF16, Coded, Matrix, to_float32

__all__ = ["GGUFFile", "claims", "read"]

MAGIC = b"GGUF"
SPLIT = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
SCALARS = dict(enumerate(("u1", "i1", "<u2", "<i2", "<u4", "<i4", "<f4", "?"))) | {10: "<u8", 11: "<i8", 12: "<f8"}
STRING, ARRAY = 8, 9
MAX_DIMS = 4
PADDING = 256  # at least what follows a tensor up to the next
LIMIT = 2**48  # elements: no tensor is larger, and byte counts stay inside 64 bits


def claims(path: Path) -> bool:
    """Whether ``path`` is a GGUF file, or a directory that has such weights and no others."""
    if path.is_dir():
        others = (found for pattern in ("*.safetensors*", "pytorch_model*") for found in path.glob(pattern))
        return any(path.glob("*.gguf")) and not any(others)
    return first_bytes(path, 4) == MAGIC


def read(path: Path) -> Checkpoint:
    """Open the file, the one model in a directory, or all files of a split one. Raises as ``open_checkpoint`` does."""
    files = [GGUFFile(part) for part in _parts(path)]
    metadata = files[0].metadata
    _check_split(files)
    tensors = {name: tensor for file in files for name, tensor in file.tensors.items()}
    if len(tensors) < sum(len(file.tensors) for file in files):
        raise CorruptModelError(f"{files[0].path}: two of its files hold the same tensor")
    model = gguf_names.model_of(metadata, {name: tensor.shape for name, tensor in tensors.items()})
    _require_types(path, [tensor for name, tensor in tensors.items() if name in model.names], model.bitnet)
    entries: dict[str, Entry] = {}
    for name, tensor in tensors.items():
        factor = tensors.get(model.factors.get(name, ""))
        if name in model.names and "{}" in model.names[name]:
            for e, part in enumerate(tensor.parts()):
                entries |= _of_expert(model.names[name].format(e), part, model.bitnet)
        elif name.endswith(gguf_names.APART):
            entries |= _keys_and_values(tensors, name.rpartition(".attn_")[0])
        elif name in model.names:
            entries[model.names[name]] = tensor.entry(model.bitnet, factor)
    config = model.config(lambda name: tensors[name].floats())
    notes = [*model.notes, *prism.rotate(metadata, model.names, entries, config)]
    tokenizer = partial(gguf_tokenizer.files, metadata)
    return Checkpoint(path, "gguf", config, entries, tuple(files), notes=notes, tokenizer_files=tokenizer)


def _require_types(path: Path, tensors: list[Tensor], bitnet: bool) -> None:
    """Raise UnsupportedModelError where tensors are of types not read here: before anything long is."""
    each = {tensor.type_name(bitnet): tensor.readable(bitnet) for tensor in tensors}
    unread, others = (sorted(name for name, known in each.items() if known == which) for which in (False, True))
    if unread:
        raise UnsupportedModelError(
            f"{path} has tensors of ggml's type {' and '.join(unread)}, which lutra does not read"
            + (f" (beside {', '.join(others)}, which it does)" if others else ""),
            f"Use a file of the model in other types: {', '.join(t.name for t in ggml.TYPES.values())}.",
        )


def _keys_and_values(tensors: dict[str, Tensor], layer: str) -> dict[str, Entry]:
    """DeepSeek's kv_b_proj, whose rows for keys files of 2025 have apart, and transposed; nothing if it is there, too.

    Keys [heads, rank, columns], values [heads, columns, rank]. As floats: blocks lie along the other dimension.
    """
    keys, values = (tensors.get(f"{layer}.attn_{x}_b.weight") for x in "kv")
    if f"{layer}.attn_kv_b.weight" in tensors:
        return {}
    if keys is None or values is None or len(keys.shape) != 3 or keys.shape[:2] != values.shape[::2]:
        raise CorruptModelError(f"{layer!r:.80} has keys and values that do not fit together", "Download it again.")
    (heads, rank, columns), more = keys.shape, values.shape[1]

    def read() -> np.ndarray:
        each = ([to_float32(part.entry(False).read()) for part in whole.parts()] for whole in (keys, values))
        return np.concatenate([part for k, v in zip(*each, strict=True) for part in (k.T, v)])

    name = f"model.layers.{layer.rpartition('.')[2]}.self_attn.kv_b_proj.weight"
    return {name: Entry("F32", (heads * (columns + more), rank), read)}


def _of_expert(name: str, tensor: Tensor, bitnet: bool) -> dict[str, Entry]:
    """An expert's tensor; or both, where gates lie above what is up."""
    if ".gate_up_proj" not in name:
        return {name: tensor.entry(bitnet)}
    rows, *rest = tensor.shape
    if rows % 2:
        raise CorruptModelError(f"{tensor.name!r:.80}: {rows} rows are not gates and as many others")
    halves = replace(tensor, shape=(2, rows // 2, *rest)).parts()
    names = (name.replace(".gate_up_proj", f".{half}_proj") for half in ("gate", "up"))
    return {own: half.entry(bitnet) for own, half in zip(names, halves, strict=True)}


def _parts(path: Path) -> list[Path]:
    if path.is_dir():
        found = sorted(path.glob("*.gguf"))
        firsts = [file for file in found if not (split := SPLIT.fullmatch(file.name)) or int(split[2]) == 1]
        if len(firsts) != 1:
            names = ", ".join(file.name for file in firsts or found)
            raise UnsupportedModelError(f"{path} holds {len(firsts)} GGUF models", f"Give one of the files: {names}")
        path = firsts[0]
    split = SPLIT.fullmatch(path.name)
    if not split:
        return [path]
    count = int(split[3])
    parts = [path.with_name(f"{split[1]}-{i + 1:05}-of-{split[3]}.gguf") for i in range(count)]
    missing = [part for part in parts if not part.exists()]
    if missing:
        raise ModelNotFoundError(
            f"{path.parent} lacks {len(missing)} of the {count} files of this model: {missing[0].name}",
            "Download all of them into one directory.",
        )
    return parts or [path]


def _check_split(files: list[GGUFFile]) -> None:
    for i, file in enumerate(files):
        said = [file.metadata.get(key, default) for key, default in (("split.no", 0), ("split.count", 1))]
        if said != [i, len(files)] and said != [0, 0]:
            raise CorruptModelError(
                f"{file.path} says it is file {said[0]} of {said[1]}, not {i} of {len(files)}, counted from 0",
                "Files of a split model keep the names they were published under.",
            )


@dataclass(frozen=True)
class Tensor:
    """A tensor as the table has it. shape: slowest dimension first. nbytes: up to the next tensor, at most."""

    file: MappedFile
    name: str
    shape: tuple[int, ...]
    type: int
    offset: int
    nbytes: int

    def entry(self, bitnet: bool, factor: Tensor | None = None) -> Entry:
        """The tensor as checkpoints have it. bitnet: of bitnet.cpp, whose type 36 is I2_S. factor: what scales it."""
        if self.type in ggml.FLOATS:
            entry = self._dense(ggml.FLOATS[self.type])
        elif self.type == I2_S and bitnet:
            entry = self._i2_s()
        elif (type := self._block_type()) and not (bitnet and self.type == TL2):
            entry = self._blocks(type)
        else:
            raise UnsupportedModelError(f"{self.name!r:.80} is of ggml's type {self.type_name(bitnet)}")
        return entry if factor is None else _scaled(entry, factor)

    def readable(self, bitnet: bool) -> bool:
        """Whether entry() knows the type."""
        if self.type == TL2 and bitnet:
            return False
        return self.type in ggml.FLOATS or self.type in ggml.TYPES or (self.type == I2_S and bitnet)

    def type_name(self, bitnet: bool) -> str:
        """What ggml calls the type."""
        if self.type == TL2 and bitnet:
            return "TL2"
        type = self._block_type()
        return type.name if type else ggml.FLOATS.get(self.type) or ggml.UNREADABLE.get(self.type, str(self.type))

    def parts(self) -> list[Tensor]:
        """The tensors along the slowest dimension: the matrices of a mixture's experts."""
        count, size = self.shape[0], self._size() // self.shape[0]
        self._check(size * count)
        return [replace(self, shape=self.shape[1:], offset=self.offset + e * size, nbytes=size) for e in range(count)]

    def floats(self) -> np.ndarray:
        """The values of a tensor of floats, as float32."""
        return to_float32(self.entry(False).read())

    def _size(self) -> int:
        """Bytes of its elements; 0 for a type that lutra does not read."""
        if self.type in ggml.FLOATS:
            return prod(self.shape) * DTYPES[ggml.FLOATS[self.type]].itemsize
        type = self._block_type()
        return prod(self.shape) // type.weights * type.nbytes if type else 0

    def _block_type(self) -> ggml.Type | None:
        """The type of this number; where several share it, the one that takes the bytes there are."""
        type = ggml.TYPES.get(self.type)
        if type and self.nbytes < prod(self.shape) // type.weights * type.nbytes:
            for other in ggml.SHARED.get(self.type, ()):
                size = prod(self.shape) // other.weights * other.nbytes
                if self.shape[-1] % other.weights == 0 and size <= self.nbytes < size + PADDING:
                    return other
        return type

    def _dense(self, dtype: str) -> Entry:
        element = DTYPES[dtype]
        self._check(self._size())

        def read() -> np.ndarray:
            array = self.file.array(self.offset, element, self.shape)
            return array.view(BF16) if dtype == "BF16" else array

        return Entry(dtype, self.shape, read)

    def _i2_s(self) -> Entry:
        size = prod(self.shape) // 4 + 32
        if len(self.shape) != 2 or prod(self.shape) % 128:
            raise CorruptModelError(f"{self.file.path}: {self.name!r:.80} of {self.shape} is no matrix of type I2_S")
        self._check(size)

        def read() -> Coded:
            return ggml.i2_s(self.file.array(self.offset, np.dtype("u1"), (size,)), (self.shape[0], self.shape[1]))

        return Entry("ternary", self.shape, read)

    def _blocks(self, type: ggml.Type) -> Entry:
        if len(self.shape) != 2 or self.shape[1] % type.weights:
            raise CorruptModelError(f"{self.file.path}: {self.name!r:.80} of {self.shape} is no matrix of {type.name}")
        shape = (self.shape[0], self.shape[1] // type.weights, type.nbytes)
        self._check(prod(shape))
        if self.nbytes - prod(shape) >= max(PADDING, prod(shape) // 4):
            raise UnsupportedModelError(
                f"{self.file.path} stores {self.name!r:.80} in ggml's type {self.type}, but not that of llama.cpp's "
                f"{type.name}: it takes {self.nbytes:,} bytes, {type.name} {prod(shape):,}",
                "It needs the program it was made for: use the model's release as safetensors.",
            )

        def blocks() -> np.ndarray:
            return self.file.array(self.offset, np.dtype("u1"), shape)

        format = type.format_of(blocks())

        def part(begin: int, end: int) -> Matrix:
            return type.read(blocks()[begin:end], format)

        return Entry(format, self.shape, lambda: part(0, shape[0]), lambda: part)

    def _check(self, nbytes: int) -> None:
        if nbytes > self.nbytes:
            raise CorruptModelError(
                f"{self.file.path}: {self.name!r:.80} takes {nbytes:,} bytes, there are {self.nbytes:,}",
                "The download did not finish: download the file again.",
            )


I2_S, TL2 = 36, 39  # in bitnet.cpp's files; llama.cpp has others


def _scaled(entry: Entry, factor: Tensor) -> Entry:
    """A matrix times a number that stands beside it."""

    def read() -> Matrix:
        matrix, by = entry.read(), factor.floats().reshape(-1)
        if by.shape != (1,):
            raise CorruptModelError(f"{factor.name!r:.80} has {len(by)} numbers, not one")
        if isinstance(matrix, Coded) and not matrix.group:
            return Coded(matrix.codes, matrix.scale * by, matrix.zero)
        return to_float32(matrix) * by

    return Entry(entry.dtype if entry.dtype == "ternary" else "F32", entry.shape, read)


class GGUFFile:
    """One mapped .gguf file: ``metadata`` by key, ``tensors`` by name.

    Strings are str, arrays of strings list[str], other arrays numpy arrays of one dimension. Every claim is checked
    before anything is made of it. Raises CorruptModelError for a file that breaks the format, UnsupportedModelError
    for a version that lutra does not read.
    """

    def __init__(self, path: Path):
        self.path = path
        self._file = MappedFile(path)
        reader = _Reader(self._file)
        tensors, keys = _counts(reader)
        self.metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = reader.string()
            if key in self.metadata:
                reader.corrupt(f"the key {key!r:.80} stands twice")
            self.metadata[key] = reader.value()
        self.tensors = {tensor.name: tensor for tensor in self._table(reader, tensors)}
        if len(self.tensors) < tensors:
            reader.corrupt("two of its tensors have one name")

    def close(self) -> None:
        self._file.close()

    def release(self) -> None:
        self._file.release()

    def here_and_there(self) -> AbstractContextManager[None]:
        return self._file.here_and_there()

    def _table(self, reader: _Reader, count: int) -> Iterator[Tensor]:
        rows = [_row(reader) for _ in range(count)]
        align = self.metadata.get("general.alignment", 32)
        if type(align) is not int or not 0 < align < 1 << 20 or align % 8:
            reader.corrupt(f"its alignment is {align!r:.40}")
        start = -(-reader.at // align) * align
        for name, _, _, offset in rows:
            if offset % align or start + offset > self._file.size:
                reader.corrupt(f"{name!r:.80} begins at byte {start + offset:,} of {self._file.size:,}")
        begins = sorted({start + offset for *_, offset in rows} | {self._file.size})
        ends = dict(pairwise(begins))
        for name, shape, type_, offset in rows:
            begin = start + offset
            shape = (1, *shape) if name.endswith(gguf_names.SINGLE_ROW) and len(shape) == 1 else shape
            shape = (prod(shape),) if name.endswith(gguf_names.FLAT) else shape
            yield Tensor(self._file, name, shape, type_, begin, ends.get(begin, begin) - begin)


def _counts(reader: _Reader) -> tuple[int, int]:
    """How many tensors and how many keys there are."""
    (version,) = reader.unpack("<4xI")
    if version not in (2, 3):
        swapped = version in (2 << 24, 3 << 24)
        raise UnsupportedModelError(
            f"{reader.file.path} is {'a big-endian GGUF file' if swapped else f'GGUF version {version}'}, "
            "which lutra does not read",
            "Convert the model again with a current llama.cpp.",
        )
    tensors, keys = reader.unpack("<qq")
    if not 0 <= tensors <= reader.left // 24 or not 0 <= keys <= reader.left // 13:
        reader.corrupt(f"it claims {tensors:,} tensors and {keys:,} keys")
    return tensors, keys


def _row(reader: _Reader) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, type and offset of a tensor."""
    name = reader.string()
    (dims,) = reader.unpack("<I")
    if not 0 < dims <= MAX_DIMS:
        reader.corrupt(f"{name!r:.80} has {dims} dimensions")
    shape = reader.unpack(f"<{dims}q")[::-1]
    if min(shape) < 1 or prod(shape) > LIMIT:
        reader.corrupt(f"{name!r:.80} has the shape {shape}")
    return name, shape, *reader.unpack("<iQ")


class _Reader:
    """A file read from the start. Nothing is read or made beyond its end."""

    def __init__(self, file: MappedFile):
        self.file, self.at = file, 0

    @property
    def left(self) -> int:
        return self.file.size - self.at

    def corrupt(self, what: str) -> NoReturn:
        raise CorruptModelError(f"{self.file.path} is no sound GGUF file: {what}", "Download it again.")

    def take(self, count: int) -> bytes:
        if count > self.left:
            self.corrupt(f"it ends {count - self.left:,} bytes too early")
        self.at += count
        return self.file.read(self.at - count, count)

    def unpack(self, format: str) -> tuple[Any, ...]:
        return struct.unpack(format, self.take(struct.calcsize(format)))

    def string(self) -> str:
        return self.take(self.unpack("<Q")[0]).decode("utf-8", "replace")

    def value(self) -> Any:
        (kind,) = self.unpack("<i")
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            return self.numbers(kind, 1)[0].item()
        kind, count = self.unpack("<iQ")
        return self.strings(count) if kind == STRING else self.numbers(kind, count)

    def numbers(self, kind: int, count: int) -> np.ndarray:
        if kind not in SCALARS:
            self.corrupt(f"a value has the type {kind}")
        dtype = np.dtype(SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize), dtype)

    def strings(self, count: int) -> list[str]:
        """Hundreds of thousands, of a few bytes each: so this is string(), but several times as fast."""
        if count > self.left // 8:
            self.corrupt(f"an array claims {count:,} strings")
        data, length = self.file.array(self.at, np.dtype("u1"), (self.left,)).data, struct.Struct("<Q").unpack_from
        ends = [0]
        try:
            for _ in range(count):
                ends.append(ends[-1] + 8 + length(data, ends[-1])[0])
        except (struct.error, OverflowError):
            self.corrupt("it ends within an array of strings")
        if ends[-1] > self.left:
            self.corrupt(f"it ends {ends[-1] - self.left:,} bytes too early")
        content = self.take(ends[-1])
        return [content[begin + 8 : end].decode("utf-8", "replace") for begin, end in pairwise(ends)]
