"""nibbles: 8-bit weights on uniform grids, as a sum of two of 4 bits: the upper halves count 16 times as much.

W = (16 scale) (code // 16 - zero // 16) + scale (code % 16 - zero % 16): the kernels of 4 bits are all it takes.

Variants: nibbles, nibblesg128 (or 64, 32), nibblesg128z, as those of q4.
"""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import Coded, Factored
from lutra.runtime.formats._chained import Chained, Link
from lutra.runtime.formats._uniform import Uniform

TYPICAL = None


def variant(suffix: str) -> Chained | None:
    """The format nibbles + suffix."""
    if Uniform.variant("q4", 4, suffix) is None:
        return None
    return Chained(lambda rows, cols: [[Link(f"q4{suffix}", rows, cols)] for _ in range(2)])


def halves(matrix: Coded) -> Factored:
    """A matrix of codes uint8 0..255 as the sum of its codes' upper and lower halves."""
    zero = np.zeros_like(matrix.scale) if matrix.zero is None else matrix.zero
    upper = Coded(matrix.codes >> 4, 16 * matrix.scale, zero // 16, matrix.group)
    lower = Coded(matrix.codes & 15, matrix.scale, zero % 16, matrix.group)
    return Factored((((None, upper),), ((None, lower),)))
