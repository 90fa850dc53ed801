"""q3: 3-bit weights on a uniform grid, at 3 bits each; _uniform.py says how they lie.

Variants: q3, one scale per row; q3g128 (or 64, 32), one per group of columns; q3g128z, a zero per group, too.
"""

from __future__ import annotations

from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q3g128"


def variant(suffix: str) -> Uniform | None:
    """The format q3 + suffix."""
    return Uniform.variant("q3", 3, suffix)
