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
from lutra.tools.quantizers import rtn

CALIBRATED = True
BLOCK = 128  # columns whose errors reach the columns after them together: whole groups
DAMPING = 0.01  # of the mean of H's diagonal, added to it


def fits(codec: Any) -> bool:
    """Uniform grids of 2 bits and more."""
    return isinstance(codec, Uniform) and codec.bits > 1


def quantize(values: np.ndarray, codec: Uniform, hessian: np.ndarray) -> Coded:
    """Coded, with scales and zeros as the format stores them."""
    rows, cols = values.shape
    group = codec.group or cols
    w, upper = _prepared(values, hessian)
    codes = np.empty(values.shape, np.uint8)
    scale, zero = (np.empty((rows, -(-cols // group)), np.float32) for _ in range(2))
    for begin in range(0, cols, BLOCK):
        end = min(begin + BLOCK, cols)
        errors = np.empty((rows, end - begin), np.float32)
        for i in range(begin, end):
            g = i // group
            if i % group == 0:
                part = np.ascontiguousarray(w[:, i : i + group])
                scale[:, g], zero[:, g] = rtn.fit(part, codec.bits, codec.zeros, halves=scale.shape[1] > 1)
            chosen = rtn.nearest(w[:, i : i + 1], scale[:, g], zero[:, g], codec.bits)[:, 0]
            codes[:, i] = chosen
            error = (w[:, i] - (chosen - zero[:, g]) * scale[:, g]) / upper[i, i]
            w[:, i:end] -= error[:, None] * upper[i, i:end]
            errors[:, i - begin] = error
        w[:, end:] -= errors @ upper[begin:end, end:]
    return Coded(codes, scale, zero, codec.group)


def _prepared(values: np.ndarray, hessian: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy of the weights, those without any input 0, and the upper Cholesky factor of H's inverse: float32."""
    h, w = hessian.copy(), values.copy()
    diagonal = np.diagonal(h).copy()
    dead = diagonal == 0
    w[:, dead] = 0
    h[np.diag_indices_from(h)] = np.where(dead, 1, diagonal) + DAMPING * diagonal.mean()
    inverse = np.linalg.inv(np.linalg.cholesky(h))
    return w, np.linalg.cholesky(inverse.T @ inverse).T.astype(np.float32)
