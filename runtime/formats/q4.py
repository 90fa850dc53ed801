"""q4: 4-bit weights on a uniform grid, at 4 bits each; _uniform.py says how they lie.

Variants: q4, one scale per row; q4g128 (or 64, 32), one per group of columns; q4g128z, a zero per group, too.
"""

from __future__ import annotations

from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q4g128"


def variant(suffix: str) -> Uniform | None:
    """The format q4 + suffix."""
    return Uniform.variant("q4", 4, suffix)
