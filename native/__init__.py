"""The native library through cffi: engines, plans, and what this CPU can do. Nothing here decides anything."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lutra.native import _api
from lutra.runtime.errors import CancelledError, LutraError, OutOfMemoryError, UnsupportedModelError

__all__ = [
    "Arg",
    "Engine",
    "Field",
    "InBlocks",
    "Op",
    "Plan",
    "cpu_features",
    "cpu_refused",
    "decode",
    "kernels",
    "levels",
    "magnitude",
    "nearest",
    "pack_codes",
    "pack_trits",
    "signs",
    "squares",
    "top_k",
    "unpack_columns",
    "unpack_fields",
    "widen_bf16",
]

ffi = _api.ffi
_NAME = {"darwin": "liblutra.dylib", "win32": "lutra.dll"}.get(sys.platform, "liblutra.so")
# LUTRA_LIBRARY=<path> loads another build of the library: one with sanitizers, one for a comparison.
_PATH = os.environ.get("LUTRA_LIBRARY") or str(Path(_api.__file__).with_name(_NAME))
# Never unloaded: when Python ends, an engine may outlive this module, and its threads are in that code.
lib: Any = ffi.dlopen(_PATH, ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0))

ABSOLUTE, SCRATCH, IDS, LOGITS, KV, WORK, BEFORE, AFTER = (
    lib.LT_ABSOLUTE,
    lib.LT_SCRATCH,
    lib.LT_IDS,
    lib.LT_LOGITS,
    lib.LT_KV,
    lib.LT_WORK,
    lib.LT_BEFORE,
    lib.LT_AFTER,
)
MORE, TERNARY, BINARY = lib.LT_MORE, lib.LT_TERNARY, lib.LT_BINARY


@dataclass(frozen=True)
class Arg:
    """``lt_arg``: where an op's argument lives."""

    space: int
    offset: int
    cols: int
    stride: int
    each: int = 0


@dataclass(frozen=True)
class Op:
    """``lt_op``: see native/api.h."""

    name: str
    args: Sequence[Arg]
    ints: Sequence[int]
    floats: Sequence[float]
    outputs: bool
    joined: bool
    times: int = 1
    experts: int = 0
    chosen: Arg | None = None


def _set(target: Any, arg: Arg) -> None:
    target.space, target.offset, target.cols, target.stride, target.each = (
        arg.space,
        arg.offset,
        arg.cols,
        arg.stride,
        arg.each,
    )


def _feature_names() -> list[str]:
    names: list[str] = []
    while (name := lib.lt_cpu_feature_name(len(names))) != ffi.NULL:
        names.append(ffi.string(name).decode())
    return names


def feature_mask(level: str) -> int:
    """The features of a CPU level and all below it: "scalar" is none, "avx512" includes "avx2".

    Raises LutraError for a name that is no level.
    """
    names = _feature_names()
    if level == "scalar":
        return 0
    if level not in names:
        raise LutraError(f"unknown CPU level {level!r}", f"choose from scalar, {', '.join(names)}")
    return (2 << names.index(level)) - 1


def cpu_features() -> list[str]:
    """What this CPU has of what our kernels use, after LUTRA_CPU=<level> has taken away what is above it."""
    mask = _allowed()
    return [name for bit, name in enumerate(_feature_names()) if mask >> bit & 1]


def cpu_refused() -> str | None:
    """What this CPU has, in principle, and why it is not among the features: "amx: its products were wrong"."""
    why = lib.lt_cpu_refused()
    return None if why == ffi.NULL else ffi.string(why).decode()


def _allowed() -> int:
    level = os.environ.get("LUTRA_CPU")
    return lib.lt_cpu_features() & (feature_mask(level) if level else ~0 & 0xFFFFFFFF)


def kernels() -> dict[str, bool]:
    """Every kernel in the library, weakest first, and whether this CPU can run it."""
    allowed = _allowed()
    return {
        ffi.string(lib.lt_kernel_name(i)).decode(): not lib.lt_kernel_needs(i) & ~allowed
        for i in range(lib.lt_kernel_count())
    }


def top_k(x: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest elements of a float32 vector, largest first, ties by lower index."""
    x = np.ascontiguousarray(x, np.float32)
    index = np.empty(max(k, 0), np.int32)
    if lib.lt_top_k(_pointer("float *", x), len(x), k, _pointer("int32_t *", index)):
        raise ValueError(f"cannot take the {k} largest of {len(x)}")
    return index


def pack_codes(codes: np.ndarray | InBlocks, bits: int, chunk: int, add: int, data: np.ndarray) -> None:
    """Codes [rows, cols] of a byte each, plus ``add`` modulo 256, as runtime/formats/_uniform.py lays them out.

    data: uint8 [blocks, chunks * bits * chunk * 2], to be filled. ValueError for codes of more bits.
    """
    rows, cols = codes.shape
    _require_room(data, (-(-rows // 16), -(-cols // chunk) * bits * chunk * 2))
    if isinstance(codes, InBlocks) and not codes.columns % chunk and codes.columns <= lib.LT_MAX_TILE:
        return _pack_fields(codes, bits, chunk, add, data)
    codes = np.ascontiguousarray(codes)
    if lib.lt_pack_codes(_pointer("uint8_t *", codes), rows, cols, add, bits, chunk, _pointer("uint8_t *", data)):
        raise ValueError(f"codes that {bits} bits do not hold")


def _pack_fields(codes: InBlocks, bits: int, chunk: int, add: int, data: np.ndarray) -> None:
    blocks = np.ascontiguousarray(codes.blocks)
    rows, n, nbytes = blocks.shape
    source, target = _pointer("uint8_t *", blocks), _pointer("uint8_t *", data)
    table, add = _table(codes.fields), add - codes.middle & 255
    if lib.lt_pack_fields(source, rows, n, nbytes, table, len(codes.fields), codes.columns, add, bits, chunk, target):
        raise ValueError(f"codes that {bits} bits do not hold, or blocks of {nbytes} bytes without {codes.fields}")


def pack_trits(codes: np.ndarray, data: np.ndarray) -> None:
    """Ternary codes int8 [rows, cols] as runtime/formats/t5.py lays them out; ValueError for any other.

    data: uint8 [blocks, groups * 64], to be filled.
    """
    codes, (rows, cols) = np.ascontiguousarray(codes), codes.shape
    _require_room(data, (-(-rows // 16), -(-cols // 20) * 64))
    if lib.lt_pack_trits(_pointer("int8_t *", codes), rows, cols, _pointer("uint8_t *", data)):
        raise ValueError("codes that are not ternary")


def _require_room(data: np.ndarray, shape: tuple[int, int]) -> None:
    if data.shape != shape or data.dtype != np.uint8 or not data.flags.c_contiguous:
        raise ValueError(f"{data.dtype} {data.shape} in place of uint8 {shape}")


@dataclass(frozen=True)
class Field:
    """``lt_field``: where some bits of every code of a block lie."""

    begin: int
    count: int
    width: int
    shift: int = 0
    run: int = 1


@dataclass(frozen=True, eq=False)
class InBlocks:
    """Codes that still lie in blocks, [rows, columns of all]: numpy sees an array, pack_codes() needs none.

    blocks: uint8 [rows, blocks of a row, bytes]. middle: what they are counted from. signed: whether they are
    int8, not uint8.
    """

    blocks: np.ndarray
    fields: tuple[Field, ...]
    middle: int = 0
    signed: bool = False

    @property
    def dtype(self) -> np.dtype:
        """int8 or uint8"""
        return np.dtype(np.int8 if self.signed else np.uint8)

    @property
    def columns(self) -> int:
        """Of a block."""
        return self.fields[0].count * 8 // self.fields[0].width

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns of all)"""
        return self.blocks.shape[0], self.blocks.shape[1] * self.columns

    def __getitem__(self, rows: Any) -> np.ndarray:
        return np.asarray(self)[rows]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        codes = unpack_fields(self.blocks.reshape(-1, self.blocks.shape[2]), self.fields).reshape(self.shape)
        if self.middle:
            codes -= np.uint8(self.middle)
        return codes.view(self.dtype).astype(dtype or self.dtype, copy=False)


def unpack_fields(blocks: np.ndarray, fields: Sequence[Field]) -> np.ndarray:
    """The codes of blocks uint8 [n, bytes]: uint8 [n, columns]. ValueError for fields that blocks cannot have."""
    blocks, (n, nbytes) = np.ascontiguousarray(blocks), blocks.shape
    columns = fields[0].count * 8 // fields[0].width
    codes = np.empty((n, columns), np.uint8)
    source, target = _pointer("uint8_t *", blocks), _pointer("uint8_t *", codes)
    if lib.lt_unpack_fields(source, n, nbytes, _table(fields), len(fields), columns, target):
        raise ValueError(f"blocks of {nbytes} bytes do not have {fields}")
    return codes


def _table(fields: Sequence[Field]) -> Any:
    return ffi.new("lt_field[]", [(f.begin, f.count, f.width, f.shift, f.run) for f in fields])


def unpack_columns(words: np.ndarray, bits: int, count: int) -> np.ndarray:
    """Codes that lie as one stream of bits down each column of words: uint8 [columns, count].

    words: int32 or uint32 [n, columns], each row's side by side. ValueError for streams that do not end with a word.
    """
    n, columns = words.shape
    if words.itemsize != 4 or words.strides[1] != 4 or words.strides[0] % 4 or n * 32 != count * bits:
        raise ValueError(f"{words.dtype} {words.shape} do not hold {count} codes of {bits} bits in a column")
    codes = np.empty((columns, count), np.uint8)
    source, target = _pointer("uint32_t *", words), _pointer("uint8_t *", codes)
    if lib.lt_unpack_columns(source, words.strides[0] // 4, columns, count, bits, target):
        raise ValueError(f"no layout of {count} codes of {bits} bits in a column")
    return codes


def nearest(x: np.ndarray, scale: np.ndarray, values: np.ndarray, code: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Groups of floats by the nearest of values times the group's scale: codes as x, squared errors float32 [n].

    x: float32 [n, group]. scale: float32 [n]. values: float32, 16 at most, which ascend; code: uint8, that of each.
    """
    x, scale, values = (np.ascontiguousarray(a, np.float32) for a in (x, scale, values))
    code = np.ascontiguousarray(code, np.uint8)
    if scale.shape != x.shape[:1] or code.shape != values.shape:
        raise ValueError(f"{x.shape} with scales of {scale.shape}, and {values.shape} values with {code.shape} codes")
    codes, error = np.empty(x.shape, np.uint8), np.empty(len(x), np.float32)
    floats = (_pointer("float *", a) for a in (scale, values))
    bytes_ = _pointer("uint8_t *", code), len(values), _pointer("uint8_t *", codes)
    if lib.lt_nearest(_pointer("float *", x), *x.shape, *floats, *bytes_, _pointer("float *", error)):
        raise ValueError(f"{len(values)} values for groups of {x.shape[1]}")
    return codes, error


def widen_bf16(bits: np.ndarray) -> np.ndarray:
    """bfloat16 numbers, uint16 bits of any shape, as float32."""
    bits = np.ascontiguousarray(bits)
    values = np.empty(bits.shape, np.float32)
    lib.lt_widen_bf16(_pointer("uint16_t *", bits), bits.size, _pointer("float *", values))
    return values


def decode(codes: np.ndarray, scale: np.ndarray, zero: np.ndarray, group: int) -> np.ndarray:
    """(codes - zero) * scale: float32 [rows, cols]. codes: int8 or uint8 [rows, cols]; scale, zero: [rows, groups]."""
    (rows, cols), shape = codes.shape, (codes.shape[0], -(-codes.shape[1] // group))
    if scale.shape != shape or zero.shape != shape or codes.itemsize != 1:
        raise ValueError(f"{codes.dtype} {codes.shape} with grids of {scale.shape} and {zero.shape}")
    codes = np.ascontiguousarray(codes)
    scale, zero = (np.ascontiguousarray(grid, np.float32) for grid in (scale, zero))
    values, signed = np.empty(codes.shape, np.float32), codes.dtype == np.int8
    pointers = (_pointer("float *", x) for x in (scale, zero, values))
    lib.lt_decode(_pointer("void *", codes), signed, rows, cols, group, *pointers)
    return values


def squares(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """The sums of (a - b)^2 and of a^2, of float32 arrays of one shape."""
    if a.shape != b.shape:
        raise ValueError(f"{a.shape} beside {b.shape}")
    a, b = (np.ascontiguousarray(x, np.float32) for x in (a, b))
    found = ffi.new("double[2]")
    lib.lt_squares(_pointer("float *", a), _pointer("float *", b), a.size, found, found + 1)
    return found[0], found[1]


def magnitude(x: np.ndarray) -> float:
    """The sum of the magnitudes of float32 numbers, in double precision."""
    x = np.ascontiguousarray(x, np.float32)
    return float(lib.lt_magnitude(_pointer("float *", x), x.size))


def signs(x: np.ndarray, beyond: float = 0.0) -> np.ndarray:
    """The signs of float32 numbers whose magnitude is more than ``beyond``, 0 for all others: int8 as x."""
    x = np.ascontiguousarray(x, np.float32)
    codes = np.empty(x.shape, np.int8)
    lib.lt_signs(_pointer("float *", x), x.size, beyond, _pointer("int8_t *", codes))
    return codes


def levels(x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Every group's largest magnitude, and whether others have it: float32 and uint8 [rows, groups].

    BINARY: all have; TERNARY: all that are not 0; MORE: not even those. x: float32 [rows, cols], of which so
    many columns are a group, or fewer at the end of a row.
    """
    x = np.ascontiguousarray(x, np.float32)
    shape = x.shape[0], -(-x.shape[1] // group)
    largest, found = np.empty(shape, np.float32), np.empty(shape, np.uint8)
    lib.lt_levels(_pointer("float *", x), *x.shape, group, _pointer("float *", largest), _pointer("uint8_t *", found))
    return largest, found


def _pointer(kind: str, array: np.ndarray) -> Any:
    return ffi.cast(kind, array.ctypes.data)


class Engine:
    """A pool of threads. Free it with close(), after its plans."""

    def __init__(self, threads: int, features: int | None = None):
        self.threads = threads
        found = ffi.new("lt_engine **")
        status = lib.lt_engine_new(self.threads, _allowed() if features is None else features, found)
        if status == lib.LT_BAD_ARGUMENT:
            raise LutraError(f"cannot run with {threads} threads", "choose 1 to 1024")
        if status:
            raise OutOfMemoryError(f"cannot start {self.threads} threads")
        self.handle = ffi.gc(found[0], lib.lt_engine_free)

    def close(self) -> None:
        """End the threads."""
        ffi.release(self.handle)


class Plan:
    """A list of ops bound to kernels. ``kept``: the arrays whose addresses the ops hold."""

    def __init__(self, engine: Engine, ops: Sequence[Op], kept: Sequence[np.ndarray]):
        self._engine, self._kept = engine, kept
        names = [ffi.new("char[]", op.name.encode()) for op in ops]
        table = ffi.new("lt_op[]", len(ops))
        for target, source, name in zip(table, ops, names, strict=True):
            if not (
                len(source.args) <= lib.LT_MAX_ARGS
                and len(source.ints) <= lib.LT_MAX_DIMS
                and len(source.floats) <= lib.LT_MAX_FLOATS
            ):
                raise ValueError(f"{source.name} has more arguments or attributes than lt_op has room for")
            target.name = name
            for arg, value in zip(target.arg, source.args, strict=False):
                _set(arg, value)
            if source.chosen:
                _set(target.chosen, source.chosen)
            target.dim[0 : len(source.ints)] = source.ints
            target.f[0 : len(source.floats)] = source.floats
            target.outputs, target.joined = source.outputs, source.joined
            target.times, target.experts = source.times, source.experts
        found, failed = ffi.new("lt_plan **"), ffi.new("int32_t *")
        status = lib.lt_plan_new(engine.handle, table, len(ops), found, failed)
        if status == lib.LT_NO_KERNEL:
            name = ops[failed[0]].name
            known = any(kernel.rpartition("_")[0] == name for kernel in kernels())
            raise UnsupportedModelError(f"no kernel for {name}" + (" that this CPU can run" if known else ""))
        if status == lib.LT_BAD_ARGUMENT:
            raise ValueError("a plan needs ops, the first of them joined to none")
        if status:
            raise OutOfMemoryError(f"cannot plan {len(ops)} ops")
        self.handle = ffi.gc(found[0], lib.lt_plan_free)
        self.op_names = [op.name for op in ops]

    @property
    def kernels(self) -> list[str]:
        """The kernel each op is bound to."""
        return [ffi.string(lib.lt_plan_kernel(self.handle, i)).decode() for i in range(len(self.op_names))]

    @property
    def stages(self) -> list[list[int]]:
        """The ops of each stage, by index."""
        found: list[list[int]] = [[] for _ in range(lib.lt_plan_stages(self.handle))]
        for i in range(len(self.op_names)):
            found[lib.lt_plan_stage_of(self.handle, i)].append(i)
        return found

    def step(self) -> Any:
        """A new ``lt_step`` to fill and pass to run()."""
        return ffi.new("lt_step *")

    def run(self, step: Any) -> None:
        """Run one step. Raises CancelledError when the step's flag stopped it."""
        status = lib.lt_plan_run(self.handle, step)
        if status == lib.LT_CANCELLED:
            raise CancelledError("the run was cancelled")
        if status:
            raise ValueError("a step outside the plan's or the session's bounds")

    def close(self) -> None:
        """Free the native plan. The engine must still be open."""
        ffi.release(self.handle)
