"""q5: 5-bit weights on a uniform grid, at 5 bits each; _uniform.py says how they lie.

Variants: q5, one scale per row; q5g128 (or 64, 32), one per group of columns; q5g128z, a zero per group, too;
q5g32s256m, groups of 32 whose scales and offsets are codes in super-blocks of 256 columns (_nested.py).
"""

from __future__ import annotations

from lutra.runtime.formats import _nested
from lutra.runtime.formats._nested import NestedGrids
from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q5g128"


def variant(suffix: str) -> Uniform | NestedGrids | None:
    """The format q5 + suffix."""
    return Uniform.variant("q5", 5, suffix) or _nested.variant(5, suffix)
