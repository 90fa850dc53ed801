"""Float matrices that stand for few values, looked at some rows at a time, so that these stay in cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lutra.runtime.formats import Matrix, to_float32
from lutra.runtime.threads import in_pieces

__all__ = ["blocks", "look_at"]

BLOCK = 1 << 18  # elements


def look_at(weights: Matrix, look: Callable[[slice, np.ndarray], None]) -> None:
    """Call look(which rows, float32 [those, cols]) for all of them, some at a time, in threads and in no order."""
    in_pieces(lambda rows: look(rows, to_float32(weights[rows])), weights.shape[0], _rows(weights))


def blocks(weights: Matrix, begin: int, end: int) -> Iterator[tuple[slice, np.ndarray]]:
    """The same for the rows from one to before another, counted from the first, in order and in this thread."""
    for first in range(begin, end, _rows(weights)):
        last = min(first + _rows(weights), end)
        yield slice(first - begin, last - begin), to_float32(weights[first:last])


def _rows(weights: Matrix) -> int:
    return max(1, BLOCK // max(weights.shape[1], 1))
