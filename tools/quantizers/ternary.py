"""Ternary weights with a scale per row: the least squared error there is (the aim of TWN: Li et al. 2016).

For a threshold the best scale is the mean magnitude beyond it, and the error falls by (sum of those magnitudes)^2 /
their number. Sorted, all thresholds are tried at once; TWN itself approximates the best one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Coded
from lutra.runtime.threads import in_pieces

AT_ONCE = 1 << 16  # elements worked on together: few enough to stay in cache


def fits(codec: Any) -> bool:
    """t5 and t2."""
    return codec.KERNEL in ("t5", "t2")


def quantize(values: np.ndarray, codec: Any) -> Coded:
    """Coded: int8 -1, 0, 1 with a float32 scale per row."""
    rows, cols = values.shape
    codes, scale = np.empty((rows, cols), np.int8), np.empty((rows, 1), np.float32)
    counts = np.arange(1, cols + 1)

    def piece(some: slice) -> None:
        size = np.abs(values[some])
        ordered = np.sort(size, axis=1)[:, ::-1]
        total = np.cumsum(ordered, axis=1, dtype=np.float64)
        n = (total * total / counts).argmax(axis=1)[:, None]
        scale[some] = np.take_along_axis(total, n, axis=1) / (n + 1)
        beyond = size >= np.take_along_axis(ordered, n, axis=1)
        np.copyto(codes[some], beyond * np.sign(values[some]), casting="unsafe")

    in_pieces(piece, rows, max(1, AT_ONCE // cols))
    return Coded(codes, scale)
