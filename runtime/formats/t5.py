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

import numpy as np

from lutra.runtime.errors import UnsupportedModelError
from lutra.runtime.formats import Coded

ROWS, BYTES, DIGITS = 16, 4, 5
GROUP = BYTES * DIGITS
MAX_COLS = 65536  # kernels sum 256 times a result in 32 bits (native/kernels/t5.h)
KERNEL = "t5"
ACT_GROUP = 0

_BYTE = (128 + np.floor_divide(2 * 256 * np.arange(-121, 122) + 243, 2 * 243)).astype(np.uint8)  # u, by m + 121
_AT_ONCE = 8  # blocks packed together: few enough to stay in cache


def layout(rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
    """The parts of a [rows, cols] matrix. Raises UnsupportedModelError for rows that are too long to sum exactly."""
    if cols > MAX_COLS:
        raise UnsupportedModelError(f"t5 holds rows of at most {MAX_COLS} weights, not {cols}")
    blocks, groups = -(-rows // ROWS), -(-cols // GROUP)
    return {"data": (np.uint8, (blocks, groups * ROWS * BYTES)), "scale": (np.float32, (blocks * ROWS,))}


def accepts(matrix: object) -> bool:
    """Whether the matrix is ternary."""
    if not isinstance(matrix, Coded) or matrix.group or matrix.zero is not None or matrix.codes.dtype != np.int8:
        return False
    return bool(np.all(np.abs(matrix.codes) <= 1))


def pack(matrix: Coded) -> dict[str, np.ndarray]:
    """The parts of a ternary matrix; ValueError for any other."""
    if not accepts(matrix):
        raise ValueError("t5 stores ternary matrices only")
    rows, cols = matrix.shape
    shapes = layout(rows, cols)
    blocks, width = shapes["data"][1]
    data = np.empty((blocks, width), np.uint8)
    for begin in range(0, blocks, _AT_ONCE):  # a few at a time: a matrix can be large
        end = min(begin + _AT_ONCE, blocks)
        data[begin:end] = _pack_blocks(matrix.codes[begin * ROWS : end * ROWS], end - begin, width)
    scale = np.zeros(blocks * ROWS, np.float32)
    scale[:rows] = matrix.scale[:, 0]
    return {"data": data, "scale": scale}


def _pack_blocks(codes: np.ndarray, blocks: int, width: int) -> np.ndarray:
    groups = width // (ROWS * BYTES)
    padded = np.ones((blocks * ROWS, groups * GROUP), np.uint8)
    np.add(codes, 1, out=padded[: codes.shape[0], : codes.shape[1]], casting="unsafe")
    trits = padded.reshape(blocks, ROWS, groups, DIGITS, BYTES)
    m = np.zeros((blocks, ROWS, groups, BYTES), np.uint8)  # plus 121, as every trit is plus 1
    for d in range(DIGITS):
        m = 3 * m + trits[:, :, :, d]
    return _BYTE[m.transpose(0, 2, 1, 3)].reshape(blocks, width)


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
