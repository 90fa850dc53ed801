"""Ternary weights with a scale per row: the least squared error there is (the aim of TWN: Li et al. 2016).

For a threshold the best scale is the mean magnitude beyond it, and the error falls by (sum of those magnitudes)^2 /
their number. Sorted, all thresholds are tried at once; TWN itself approximates the best one. The kernel of
native/kernels/fit_ternary.c finds it without sorting.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra import native
from lutra.runtime.formats import Coded
from lutra.runtime.threads import in_pieces
from lutra.tools.loops import on_rows

BY_ROWS = True
AT_ONCE = 1 << 18  # elements worked on together


def fits(codec: Any) -> bool:
    """t5 and t2."""
    return codec.KERNEL in ("t5", "t2")


def quantize(values: np.ndarray, codec: Any) -> Coded:
    """Coded: int8 -1, 0, 1 with a float32 scale per row."""
    rows, cols = values.shape
    codes, scale = np.empty((rows, cols), np.int8), np.empty((rows, 1), np.float32)

    def piece(some: slice) -> None:
        if cols > native.lib.LT_MAX_TERNARY:
            codes[some], scale[some] = fit_ternary(values[some])
        else:
            on_rows("fit_ternary", [codes[some], scale[some]], [values[some]], [])

    in_pieces(piece, rows, max(1, AT_ONCE // cols))
    return Coded(codes, scale)


def fit_ternary(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the kernel makes of float32 [rows, cols]: codes int8 of that shape, scale float32 [rows, 1]."""
    size = np.abs(x)
    ordered = np.sort(size, axis=1)[:, ::-1]
    total = np.cumsum(ordered, axis=1, dtype=np.float64)
    n = (total * total / np.arange(1, x.shape[1] + 1)).argmax(axis=1)[:, None]
    beyond = size >= np.take_along_axis(ordered, n, axis=1)
    scale = _sums(np.where(beyond, size, 0)) / beyond.sum(axis=1)
    return (beyond * np.sign(x)).astype(np.int8), scale.astype(np.float32)[:, None]


def _sums(x: np.ndarray) -> np.ndarray:
    """Of each row, float64, in the kernel's order: sixteen columns side by side, then each half added to the other."""
    padded = np.zeros((len(x), -(-x.shape[1] // 16) * 16), np.float64)
    padded[:, : x.shape[1]] = x
    lanes = padded.reshape(len(x), -1, 16).cumsum(axis=1)[:, -1]
    for half in (8, 4, 2, 1):
        lanes = lanes[:, :half] + lanes[:, half : 2 * half]
    return lanes[:, 0]
