"""What most formats have in common: rows in blocks of 16, packed a few at a time and by several threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lutra.runtime.formats import Matrix
from lutra.runtime.threads import in_pieces

ROWS = 16
AT_ONCE = 1 << 20  # elements packed together: few enough to stay in cache, enough for what calls of numpy cost

Layout = dict[str, tuple[type, tuple[int, ...]]]
Parts = dict[str, np.ndarray]


def pack_by_rows(matrix: Matrix, layout: Layout, pack: Callable[[Matrix], Parts]) -> Parts:
    """The parts of a matrix: ``pack`` makes those of some of its rows; it raises ValueError for what it cannot hold.

    A part whose dimensions are not all the rows' blocks or rows is the same for all of them.
    """
    parts: Parts = {name: np.zeros(shape, dtype) for name, (dtype, shape) in layout.items()}
    rows, cols = matrix.shape

    def piece(some: slice) -> None:
        blocks = slice(some.start // ROWS, -(-some.stop // ROWS))
        for name, part in pack(matrix[some]).items():
            parts[name][blocks] = part

    in_pieces(piece, rows, max(1, AT_ONCE // max(cols, 1) // ROWS) * ROWS)
    return parts


def by_block(grid: np.ndarray, dtype: type = np.float16) -> np.ndarray:
    """[rows, groups], or [n, rows, groups] whose values of a group lie together: [blocks, groups * n * 16] of a type."""
    grids = grid if grid.ndim == 3 else grid[None]
    count, rows, groups = grids.shape
    whole, blocks = rows // ROWS, -(-rows // ROWS)
    found = np.zeros((blocks, groups, count, ROWS), dtype)
    with np.errstate(over="ignore"):  # what is too large for the type becomes infinite
        found[:whole] = grids[:, : whole * ROWS].reshape(count, whole, ROWS, groups).transpose(1, 3, 0, 2)
        if whole < blocks:
            found[whole, :, :, : rows - whole * ROWS] = grids[:, whole * ROWS :].transpose(2, 0, 1)
    return found.reshape(blocks, -1)


def by_row(grid: np.ndarray, rows: int) -> np.ndarray:
    """[blocks, groups * 16] to float32 [rows, groups]"""
    groups = grid.shape[1] // ROWS
    return grid.reshape(-1, groups, ROWS).swapaxes(1, 2).reshape(-1, groups)[:rows].astype(np.float32)
