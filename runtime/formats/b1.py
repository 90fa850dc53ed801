"""b1: binary weights, -1 and 1 (or any two values) on a uniform grid, at 1 bit each; _uniform.py says how they lie.

Variants: b1, one scale per row; b1g128 (or 64, 32), one per group of columns; b1g128z, a zero per group, too.
"""

from __future__ import annotations

from lutra.runtime.formats._uniform import Uniform

TYPICAL = "b1"


def variant(suffix: str) -> Uniform | None:
    """The format b1 + suffix."""
    return Uniform.variant("b1", 1, suffix)
