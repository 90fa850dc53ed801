"""f16: IEEE half float weights, row by row. Float activations.

data  float16  [rows, cols]
"""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import Matrix, to_float32

KERNEL = "f16"
ACT_GROUP = None


def layout(rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The parts of a [rows, cols] matrix."""
    return {"data": (np.float16, (rows, cols))}


def accepts(matrix: Matrix) -> bool:
    """Whether the matrix is IEEE half float already."""
    return isinstance(matrix, np.ndarray) and matrix.dtype == np.float16


def pack(matrix: Matrix) -> dict[str, np.ndarray]:
    """The parts of any matrix, rounded to IEEE half float; one that is so already is used where it lies."""
    if accepts(matrix):
        return {"data": matrix}  # type: ignore[dict-item]
    return {"data": to_float32(matrix).astype(np.float16)}


def unpack(rows: int, cols: int, parts: dict[str, np.ndarray]) -> np.ndarray:
    """The matrix as float32."""
    return to_float32(parts["data"])
