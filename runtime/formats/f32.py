"""f32: float32 weights, row by row. Float activations.

data  float32  [rows, cols]
"""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import Matrix, to_float32

KERNEL = "f32"
ACT_GROUP = None


def layout(rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The parts of a [rows, cols] matrix."""
    return {"data": (np.float32, (rows, cols))}


def accepts(matrix: Matrix) -> bool:
    """Whether the matrix is float32 already."""
    return isinstance(matrix, np.ndarray) and matrix.dtype == np.float32


def pack(matrix: Matrix) -> dict[str, np.ndarray]:
    """The parts of any matrix, rounded to float32."""
    return {"data": to_float32(matrix).astype(np.float32, copy=False)}


def unpack(rows: int, cols: int, parts: dict[str, np.ndarray]) -> np.ndarray:
    """The matrix as float32."""
    return to_float32(parts["data"])
