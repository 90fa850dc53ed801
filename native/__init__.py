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

__all__ = ["Arg", "Engine", "Op", "Plan", "cpu_features", "cpu_refused", "kernels", "top_k"]

ffi = _api.ffi
_NAME = {"darwin": "liblutra.dylib", "win32": "lutra.dll"}.get(sys.platform, "liblutra.so")
# LUTRA_LIBRARY=<path> loads another build of the library: one with sanitizers, one for a comparison.
_PATH = os.environ.get("LUTRA_LIBRARY") or str(Path(_api.__file__).with_name(_NAME))
# Never unloaded: when Python ends, an engine may outlive this module, and its threads are in that code.
lib: Any = ffi.dlopen(_PATH, ffi.RTLD_NOW | getattr(ffi, "RTLD_NODELETE", 0))

ABSOLUTE, SCRATCH, IDS, LOGITS, KV, WORK = (
    lib.LT_ABSOLUTE,
    lib.LT_SCRATCH,
    lib.LT_IDS,
    lib.LT_LOGITS,
    lib.LT_KV,
    lib.LT_WORK,
)


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
