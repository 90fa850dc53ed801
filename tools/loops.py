"""Work on large arrays: compiled where numba is installed.

A step that numpy would walk through memory for many times over is written twice: as numpy, and as plain loops for
numba, which do the same arithmetic in the same order. So the same bytes come out, with numba or without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

__all__ = ["compiled", "spans"]

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


def _jitted(loops: Callable[..., Any]) -> Callable[..., Any] | None:
    try:
        import numba
    except ImportError:
        return None
    compiling = not getattr(numba.config, "DISABLE_JIT", False)
    return numba.njit(loops, nogil=True) if compiling else None


def spans(cols: int, group: int) -> list[tuple[int, int, int]]:
    """(begin, end, size) of the columns that fall into whole groups, and of the smaller group that is left."""
    whole = cols // group * group
    return [span for span in ((0, whole, group), (whole, cols, cols - whole)) if span[0] < span[1]]
