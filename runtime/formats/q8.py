"""q8: 8-bit weights, row by row, with one float32 scale per row: scale = max|row| / 127. Float activations.

data   int8     [rows, cols]
scale  float32  [rows]
"""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import Coded, Matrix, to_float32

KERNEL = "q8"
ACT_GROUP = None


def layout(rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The parts of a [rows, cols] matrix."""
    return {"data": (np.int8, (rows, cols)), "scale": (np.float32, (rows,))}


def accepts(matrix: Matrix) -> bool:
    """Whether the matrix is integers with a scale per row already."""
    return isinstance(matrix, Coded) and matrix.codes.dtype == np.int8 and not matrix.group and matrix.zero is None


def pack(matrix: Matrix) -> dict[str, np.ndarray]:
    """The parts of any matrix: integers as they are, floats rounded to the nearest of 255 steps."""
    if isinstance(matrix, Coded) and accepts(matrix):
        return {"data": matrix.codes, "scale": matrix.scale[:, 0]}
    data = np.empty(matrix.shape, np.int8)
    scale = np.empty((matrix.shape[0], 1), np.float32)
    for begin in range(0, len(data), 4096):  # a slice at a time: a vocabulary is large
        rows = slice(begin, begin + 4096)
        values = to_float32(matrix[rows])
        scale[rows] = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
        data[rows] = np.rint(values / np.where(scale[rows] > 0, scale[rows], 1))
    return {"data": data, "scale": scale[:, 0]}


def unpack(rows: int, cols: int, parts: dict[str, np.ndarray]) -> Coded:
    """The matrix these parts store."""
    return Coded(parts["data"], parts["scale"][:, None])
