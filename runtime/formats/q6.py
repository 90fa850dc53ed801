"""q6: 6-bit weights on a uniform grid, at 6 bits each; _uniform.py says how they lie.

Variants: q6, one scale per row; q6g128 (or 64, 32), one per group of columns; q6g128z, a zero per group, too;
q6g16s256, groups of 16 whose scales are codes in super-blocks of 256 columns (_nested.py).
"""

from __future__ import annotations

from lutra.runtime.formats import _nested
from lutra.runtime.formats._nested import NestedGrids
from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q6g128"


def variant(suffix: str) -> Uniform | NestedGrids | None:
    """The format q6 + suffix."""
    return Uniform.variant("q6", 6, suffix) or _nested.variant(6, suffix)
