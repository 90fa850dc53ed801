"""Work on large arrays: by the native library, or compiled where numba is installed.

A step that numpy would walk through memory for many times over is written twice: as numpy, and as a kernel, or as plain
loops for numba, which do the same arithmetic in the same order. So the same bytes come out, with numba or without.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from lutra import native

__all__ = ["compiled", "compiler_bytes", "on_rows", "spans"]

COMPILER = 160 << 20  # bytes that numba takes, about, as soon as it compiles
WORTH = 1 << 16  # elements of the first argument from which on compiling, a second or so, pays


def compiled(plain: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorates the loops that do what ``plain`` does; those are taken for large arrays if numba is there."""

    def decorate(loops: Callable[..., Any]) -> Callable[..., Any]:
        best: list[Callable[..., Any]] = []  # once it was worth it, what is compiled is taken for small arrays, too

        @functools.wraps(plain)
        def call(*args: Any) -> Any:
            if not best and args[0].size >= WORTH:
                best.append(_jitted(loops) or plain)
            return (best[0] if best else plain)(*args)

        return call

    return decorate


def compiler_bytes() -> int:
    """What the compiler takes, about; 0 where there is none."""
    return COMPILER if importlib.util.find_spec("numba") else 0


def _jitted(loops: Callable[..., Any]) -> Callable[..., Any] | None:
    try:
        import numba
    except ImportError:
        return None
    compiling = not getattr(numba.config, "DISABLE_JIT", False)
    return numba.njit(loops, nogil=True) if compiling else None


def on_rows(op: str, outs: Sequence[np.ndarray], ins: Sequence[np.ndarray], ints: Sequence[int]) -> None:
    """Fill outs by one op of the native library, in this thread. All arrays are [rows, columns of their own]."""
    ins = [x if x.strides[1] == x.itemsize else np.ascontiguousarray(x) for x in ins]
    args = [native.Arg(native.ABSOLUTE, x.ctypes.data, x.shape[1], x.strides[0]) for x in (*outs, *ins)]
    engine = native.Engine(1)
    plan = native.Plan(engine, [native.Op(op, args, ints, [], False, False)], [*outs, *ins])
    step = plan.step()
    step.n_tokens = step.n_ctx = len(outs[0])
    plan.run(step)
    plan.close()
    engine.close()


def spans(cols: int, group: int) -> list[tuple[int, int, int]]:
    """(begin, end, size) of the columns that fall into whole groups, and of the smaller group that is left."""
    whole = cols // group * group
    return [span for span in ((0, whole, group), (whole, cols, cols - whole)) if span[0] < span[1]]
