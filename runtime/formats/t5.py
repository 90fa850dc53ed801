"""t5: ternary weights at 1.6 bits, five to a byte, with one float32 scale per output row.

A byte is u = 128 + round(256 m / 243), where m = sum of t[d] * 3^(4 - d) over its five trits t[0..4]: the trits as
the digits of a balanced ternary fraction. Multiplying the fraction by 3, wrapping to a byte, shifts the next digit
out, so kernels decode with additions, or not at all (native/kernels/t5.h).

Rows come in blocks of 16, columns in groups of 20. A group of a block is 64 bytes, [16 rows][4 bytes]; byte b of a
row holds columns b, 4 + b, 8 + b, 12 + b, 16 + b of the group, so that each trit d of the four bytes meets four
neighbouring activations. Rows and columns beyond the matrix's are 0.

    data   uint8    [blocks, groups * 64]
    scale  float32  [blocks * 16]
"""

from __future__ import annotations

from typing import TypeGuard

import numpy as np

from lutra import native
from lutra.runtime.errors import UnsupportedModelError
from lutra.runtime.formats import Coded, Matrix
from lutra.runtime.formats._blocks import ROWS, Layout, Parts, empty, fill_by_rows, fill_grid

BYTES, DIGITS = 4, 5
GROUP = BYTES * DIGITS
MAX_COLS = 65536  # kernels sum 256 times a result in 32 bits (native/kernels/t5.h)
KERNEL = "t5"
ACT_GROUP = 0


def layout(rows: int, cols: int) -> Layout:
    """The parts of a [rows, cols] matrix. Raises UnsupportedModelError for rows that are too long to sum exactly."""
    if cols > MAX_COLS:
        raise UnsupportedModelError(f"t5 holds rows of at most {MAX_COLS} weights, not {cols}")
    blocks, groups = -(-rows // ROWS), -(-cols // GROUP)
    return {"data": (np.uint8, (blocks, groups * ROWS * BYTES)), "scale": (np.float32, (blocks * ROWS,))}


def accepts(matrix: object) -> bool:
    """Whether the matrix is ternary."""
    return _is_by_row(matrix) and bool(np.all(np.abs(matrix.codes) <= 1))


def _is_by_row(matrix: object) -> TypeGuard[Coded]:
    """Whether the matrix is integers around 0 with a scale per row."""
    return isinstance(matrix, Coded) and not matrix.group and matrix.zero is None and matrix.codes.dtype == np.int8


def pack(matrix: Matrix) -> Parts:
    """The parts of a ternary matrix; ValueError for any other."""
    parts = empty(layout(*matrix.shape))
    fill_by_rows({**parts, "scale": parts["scale"].reshape(-1, ROWS)}, matrix, _fill)
    return parts


def _fill(parts: Parts, matrix: Matrix) -> None:
    if not _is_by_row(matrix):
        raise ValueError("t5 stores ternary matrices only")
    native.pack_trits(matrix.codes, parts["data"])
    fill_grid(parts["scale"], matrix.scale)


def unpack(rows: int, cols: int, parts: dict[str, np.ndarray]) -> Coded:
    """The matrix again. Every byte means something: none is invalid."""
    data = parts["data"]
    blocks = data.shape[0]
    fraction = data.reshape(blocks, -1, ROWS, BYTES).astype(np.int32) - 128
    trits = np.empty((*fraction.shape[:2], ROWS, DIGITS, BYTES), np.int8)
    for d in range(DIGITS):
        digit = (fraction > 42).astype(np.int8) - (fraction < -42)
        trits[:, :, :, d] = digit
        fraction = 3 * fraction - 256 * digit.astype(np.int32)
    codes = trits.transpose(0, 2, 1, 3, 4).reshape(blocks * ROWS, -1)
    return Coded(np.ascontiguousarray(codes[:rows, :cols]), parts["scale"][:rows, None])
