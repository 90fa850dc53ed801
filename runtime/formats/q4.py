"""q4: 4-bit weights on a uniform grid, at 4 bits each; _uniform.py says how they lie.

Variants: q4, one scale per row; q4g128 (or 64, 32), one per group of columns; q4g128z, a zero per group, too;
q4g32s256m, groups of 32 whose scales and offsets are codes in super-blocks of 256 columns (_nested.py).
"""

from __future__ import annotations

from lutra.runtime.formats import _nested
from lutra.runtime.formats._nested import NestedGrids
from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q4g128"


def variant(suffix: str) -> Uniform | NestedGrids | None:
    """The format q4 + suffix."""
    return Uniform.variant("q4", 4, suffix) or _nested.variant(4, suffix)
