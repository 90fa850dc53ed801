"""Work on large arrays: in pieces that stay in cache, a thread for each core, compiled where numba is installed.

A step that numpy would walk through memory for many times over is written twice: as numpy, and as plain loops for
numba, which do the same arithmetic in the same order. So the same bytes come out, with numba or without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from lutra.runtime import threads

__all__ = ["compiled", "in_pieces", "spans"]

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
    return None if numba.config.DISABLE_JIT else numba.njit(loops, nogil=True)  # type: ignore[no-any-return]


def in_pieces(work: Callable[[slice], None], count: int, step: int) -> None:
    """Call work(slice) for all of range(count), ``step`` at a time, in threads. Raises what one of them raises."""
    pieces = [slice(begin, min(begin + step, count)) for begin in range(0, count, step)]
    if len(pieces) < 2:
        return _all(map(work, pieces))
    with ThreadPoolExecutor(threads.default()) as pool:
        return _all(pool.map(work, pieces))


def _all(done: Iterable[None]) -> None:
    for _ in done:
        pass


def spans(cols: int, group: int) -> list[tuple[int, int, int]]:
    """(begin, end, size) of the columns that fall into whole groups, and of the smaller group that is left."""
    whole = cols // group * group
    return [span for span in ((0, whole, group), (whole, cols, cols - whole)) if span[0] < span[1]]
