"""bf16: bfloat16 weights, row by row. Float activations.

data  uint16 (the bits)  [rows, cols]
"""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import BF16, Matrix, to_float32

KERNEL = "bf16"
ACT_GROUP = None


def layout(rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The parts of a [rows, cols] matrix."""
    return {"data": (np.uint16, (rows, cols))}


def accepts(matrix: Matrix) -> bool:
    """Whether the matrix is bfloat16 already."""
    return isinstance(matrix, BF16)


def pack(matrix: Matrix) -> dict[str, np.ndarray]:
    """The parts of any matrix, rounded to bfloat16."""
    if isinstance(matrix, BF16):
        return {"data": matrix.view(np.ndarray)}
    bits = to_float32(matrix).view(np.uint32)
    return {"data": ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)}  # ties to even


def unpack(rows: int, cols: int, parts: dict[str, np.ndarray]) -> np.ndarray:
    """The matrix as float32."""
    return to_float32(parts["data"].view(BF16))
