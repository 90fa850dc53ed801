"""What most formats have in common: rows in blocks of 16, packed a few at a time and by several threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lutra.runtime.formats import Matrix, is_finite
from lutra.runtime.threads import in_pieces

ROWS = 16
AT_ONCE = 1 << 21  # elements packed together: few enough to stay in cache, enough for what calls of numpy cost

Layout = dict[str, tuple[type, tuple[int, ...]]]
Parts = dict[str, np.ndarray]


def empty(layout: Layout) -> Parts:
    """Parts to be filled."""
    return {name: np.zeros(shape, dtype) for name, (dtype, shape) in layout.items()}


def fill_by_rows(parts: Parts, matrix: Matrix, fill: Callable[[Parts, Matrix], None]) -> None:
    """Call fill(those blocks of the parts, some rows of the matrix) for all of it. Parts: an element for each block."""
    rows, cols = matrix.shape

    def piece(some: slice) -> None:
        blocks = slice(some.start // ROWS, -(-some.stop // ROWS))
        fill({name: part[blocks] for name, part in parts.items()}, matrix[some])

    at_once = getattr(matrix, "at_once", None) or AT_ONCE
    in_pieces(piece, rows, max(1, at_once // max(cols, 1) // ROWS) * ROWS)


def fill_grid(part: np.ndarray, *grids: np.ndarray) -> None:
    """[rows, groups] to [blocks, groups * 16]; of several grids, the values of a group lie one behind the other.

    ValueError for numbers that are not finite, or that the part's type does not hold.
    """
    rows, groups = grids[0].shape
    whole = rows // ROWS
    found = part.reshape(len(part), groups, len(grids), ROWS)
    with np.errstate(over="ignore"):
        for i, grid in enumerate(grids):
            found[:whole, :, i] = grid[: whole * ROWS].reshape(whole, ROWS, groups).swapaxes(1, 2)
            found[whole:, :, i, : rows % ROWS] = grid[whole * ROWS :].T
    if not is_finite(part):
        raise ValueError(f"scales beyond {part.dtype}'s range")


def by_row(grid: np.ndarray, rows: int) -> np.ndarray:
    """[blocks, groups * 16] to float32 [rows, groups]"""
    groups = grid.shape[1] // ROWS
    return grid.reshape(-1, groups, ROWS).swapaxes(1, 2).reshape(-1, groups)[:rows].astype(np.float32)
