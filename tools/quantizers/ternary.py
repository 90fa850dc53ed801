"""Ternary weights with a scale per row: the least squared error there is (the aim of TWN: Li et al. 2016).

For a threshold the best scale is the mean magnitude beyond it, and the error falls by (sum of those magnitudes)^2 /
their number. Sorted, all thresholds are tried at once; TWN itself approximates the best one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Coded


def fits(codec: Any) -> bool:
    """t5 and t2."""
    return codec.KERNEL in ("t5", "t2")


def quantize(values: np.ndarray, codec: Any) -> Coded:
    """Coded: int8 -1, 0, 1 with a float32 scale per row."""
    codes, scale = np.empty(values.shape, np.int8), np.empty((len(values), 1), np.float32)
    for row, (v, into) in enumerate(zip(values, codes, strict=True)):
        size = np.sort(np.abs(v).astype(np.float64))[::-1]
        total = np.cumsum(size)
        n = int((total**2 / np.arange(1, len(v) + 1)).argmax())
        scale[row] = total[n] / (n + 1)
        np.copyto(into, np.sign(v) * (np.abs(v) >= size[n]), casting="unsafe")
    return Coded(codes, scale)
