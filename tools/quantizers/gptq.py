"""GPTQ (Frantar et al. 2022): column by column, what rounding one column loses is made up for by those not yet rounded.

With the second moments H of the matrix's inputs, the error of a layer's outputs is tr(E H E^T). Columns are rounded in
their order, in blocks, by the Cholesky factor of the inverse of H; a group's grid is fitted to its columns as they
have become when it begins (rtn.py).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Coded
from lutra.runtime.formats._uniform import Uniform
from lutra.runtime.threads import in_pieces
from lutra.tools.loops import compiled, compiler_bytes
from lutra.tools.quantizers import rtn

CALIBRATED = True
BLOCK = 128  # columns whose errors reach the columns after them together: whole groups
DAMPING = 0.01  # of the mean of H's diagonal, added to it
AT_ONCE = 1024  # rows worked on together
SMALL = 64  # columns of a triangle that is inverted as any matrix is


def fits(codec: Any) -> bool:
    """Uniform grids of 2 bits and more."""
    return isinstance(codec, Uniform) and codec.bits > 1


def memory(rows: int, cols: int, codec: Uniform) -> int:
    """The values; the second moments, and as much four times over while they are factored."""
    return 4 * rows * cols + 5 * 8 * cols * cols + compiler_bytes()


def quantize(values: np.ndarray, codec: Uniform, hessian: np.ndarray) -> Coded:
    """Coded, with scales and zeros as the format stores them."""
    rows, cols = values.shape
    upper, dead = _factor(hessian)
    codes = np.empty(values.shape, np.uint8)
    scale, zero = (np.empty((rows, -(-cols // (codec.group or cols))), np.float32) for _ in range(2))

    def piece(some: slice) -> None:
        w = np.where(dead, np.float32(0), values[some])
        _round(w, codec, upper, codes[some], scale[some], zero[some])

    in_pieces(piece, rows, AT_ONCE)
    return Coded(codes, scale, zero, codec.group)


def _round(
    w: np.ndarray, codec: Uniform, upper: np.ndarray, codes: np.ndarray, scale: np.ndarray, zero: np.ndarray
) -> None:
    """Fill codes, scale and zero; the weights are used up."""
    cols = w.shape[1]
    group = codec.group or cols
    top = np.float32((1 << codec.bits) - 1)
    for begin in range(0, cols, BLOCK):
        end = min(begin + BLOCK, cols)
        block, square = w[:, begin:end].copy(), np.ascontiguousarray(upper[begin:end, begin:end])
        chosen, errors = np.empty_like(block), np.empty_like(block)
        for first in range(begin, end, min(group, BLOCK)):
            last, g = min(first + group, end), first // group
            if first % group == 0:
                part = block[:, first - begin : last - begin] if group <= BLOCK else w[:, first : first + group]
                scale[:, g], zero[:, g] = rtn.fit(part, codec.bits, codec.zeros, halves=scale.shape[1] > 1)
            s, z = scale[:, g].copy(), zero[:, g].copy()
            _swept(block, first - begin, last - begin, s, z, rtn.inverse(s), square, top, chosen, errors)
        codes[:, begin:end] = chosen
        w[:, end:] -= errors @ upper[begin:end, end:]


def _swept_plain(
    block: np.ndarray,
    first: int,
    last: int,
    scale: np.ndarray,
    zero: np.ndarray,
    inverse: np.ndarray,
    upper: np.ndarray,
    top: np.float32,
    chosen: np.ndarray,
    errors: np.ndarray,
) -> None:
    """Round columns first..last of a block, each into the columns that are left of it; fill their codes and errors."""
    for i in range(first, last):
        code = np.clip(np.rint(block[:, i] * inverse + zero), np.float32(0), top)
        error = (block[:, i] - (code - zero) * scale) / upper[i, i]
        block[:, i:] -= error[:, None] * upper[i, i:]
        chosen[:, i], errors[:, i] = code, error


@compiled(_swept_plain)
def _swept(
    block: Any,
    first: Any,
    last: Any,
    scale: Any,
    zero: Any,
    inverse: Any,
    upper: Any,
    top: Any,
    chosen: Any,
    errors: Any,
) -> None:
    for row in range(block.shape[0]):
        for i in range(first, last):
            left, factor = block[row, i:], upper[i, i:]
            code = min(max(np.rint(left[0] * inverse[row] + zero[row]), np.float32(0)), top)
            error = (left[0] - (code - zero[row]) * scale[row]) / factor[0]
            for j in range(len(left)):
                left[j] -= error * factor[j]
            chosen[row, i], errors[row, i] = code, error


def _factor(hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Upper R, float32, with R^T R the inverse of the damped H; and which columns never have any input.

    From behind, Cholesky's factor of H is upper: H = U U^T, and R is the inverse of U.
    """
    diagonal = np.diagonal(hessian).copy()
    dead = diagonal == 0
    h = hessian[::-1, ::-1].copy()
    h[np.diag_indices_from(h)] = (np.where(dead, 1, diagonal) + DAMPING * diagonal.mean())[::-1]
    upper = np.linalg.cholesky(h)[::-1, ::-1].astype(np.float32, order="C")
    _invert(upper)  # damped H has no directions that float32 would lose
    return upper, dead


def _invert(upper: np.ndarray) -> None:
    """Put an upper triangle's inverse in its place."""
    n = len(upper)
    if n <= SMALL:
        upper[:] = np.triu(np.linalg.inv(upper))
        return
    half = n // 2
    _invert(upper[:half, :half])
    _invert(upper[half:, half:])
    upper[:half, half:] = -(upper[:half, :half] @ upper[:half, half:]) @ upper[half:, half:]
