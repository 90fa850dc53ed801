"""t2: ternary weights at 2 bits, with one float32 scale per output row; _uniform.py says how they lie.

For BitNet's int8 activations with one scale per token, as t5, on CPUs without a byte dot product, where decoding t5
takes longer than reading the bits it saves.
"""

from __future__ import annotations

import numpy as np

from lutra.runtime.formats import Coded, Matrix, Unread
from lutra.runtime.formats._blocks import Parts
from lutra.runtime.formats._uniform import Uniform
from lutra.runtime.formats.t5 import accepts as is_ternary

KERNEL = "t2"
ACT_GROUP = 0
_GRID = Uniform(KERNEL, bits=2, ACT_GROUP=0)
layout = _GRID.layout


def accepts(matrix: object) -> bool:
    """Whether the matrix is ternary."""
    return is_ternary(matrix)


def pack(matrix: Matrix) -> Parts:
    """The parts of a ternary matrix, as codes 0, 1, 2 around 1; ValueError for any other."""
    at_once = getattr(matrix, "at_once", None)
    return _GRID.pack(Unread(matrix.shape, lambda begin, end: _from_zero(matrix[begin:end]), at_once))  # type: ignore[arg-type]


def _from_zero(matrix: Matrix) -> Coded:
    if not is_ternary(matrix):
        raise ValueError("t2 stores ternary matrices only")
    assert isinstance(matrix, Coded)
    return Coded((matrix.codes + np.int8(1)).view(np.uint8), matrix.scale, np.ones_like(matrix.scale))


def unpack(rows: int, cols: int, parts: dict[str, np.ndarray]) -> Coded:
    """The matrix again; code 3, which pack never writes, is 2."""
    grid = _GRID.unpack(rows, cols, parts)
    assert grid.zero is not None
    return Coded((grid.codes - grid.zero[0, 0].astype(np.uint8)).view(np.int8), grid.scale)
