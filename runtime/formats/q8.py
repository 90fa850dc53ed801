"""q8: 8-bit weights, of two kinds that a group tells apart: they also differ in what they do to activations.

q8: rows of int8 with one scale each, and activations stay floats: for embeddings and outputs.

    data   int8     [rows, cols]
    scale  float32  [rows]

q8g128 (or 64, 32), q8g128z: grids as _uniform.py has them, and int8 activations, as all of q2 to q6 take them. No such
grid has whole rows: its name would be q8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.runtime.formats import Coded, Matrix, to_float32
from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q8"


@dataclass(frozen=True)
class Rows:
    """The format q8."""

    KERNEL: str = "q8"
    ACT_GROUP: int | None = None

    def layout(self, rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The parts of a [rows, cols] matrix."""
        return {"data": (np.int8, (rows, cols)), "scale": (np.float32, (rows,))}

    def accepts(self, matrix: Matrix) -> bool:
        """Whether the matrix is integers with a scale per row already."""
        return isinstance(matrix, Coded) and matrix.codes.dtype == np.int8 and not matrix.group and matrix.zero is None

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of any matrix: integers as they are, floats rounded to the nearest of 255 steps."""
        if isinstance(matrix, Coded) and self.accepts(matrix):
            return {"data": matrix.codes, "scale": matrix.scale[:, 0]}
        data = np.empty(matrix.shape, np.int8)
        scale = np.empty((matrix.shape[0], 1), np.float32)
        for begin in range(0, len(data), 4096):  # a slice at a time: a vocabulary is large
            rows = slice(begin, begin + 4096)
            values = to_float32(matrix[rows])
            scale[rows] = np.abs(values).max(axis=1, keepdims=True) / np.float32(127)
            data[rows] = np.rint(values / np.where(scale[rows] > 0, scale[rows], 1))
        return {"data": data, "scale": scale[:, 0]}

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Coded:
        """The matrix these parts store."""
        return Coded(parts["data"], parts["scale"][:, None])


def variant(suffix: str) -> Rows | Uniform | None:
    """The format q8 + suffix."""
    return Uniform.variant("u8", 8, suffix) if suffix else Rows()
