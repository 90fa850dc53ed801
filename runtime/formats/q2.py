"""q2: 2-bit weights on a uniform grid, at 2 bits each; _uniform.py says how they lie.

Variants: q2, one scale per row; q2g128 (or 64, 32), one per group of columns; q2g128z, a zero per group, too;
q2g16s256m, groups of 16 whose scales and offsets are codes in super-blocks of 256 columns (_nested.py).
"""

from __future__ import annotations

from lutra.runtime.formats import _nested
from lutra.runtime.formats._nested import NestedGrids
from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q2g128"


def variant(suffix: str) -> Uniform | NestedGrids | None:
    """The format q2 + suffix."""
    return Uniform.variant("q2", 2, suffix) or _nested.variant(2, suffix)
