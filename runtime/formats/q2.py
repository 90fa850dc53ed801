"""q2: 2-bit weights on a uniform grid, at 2 bits each; _uniform.py says how they lie.

Variants: q2, one scale per row; q2g128 (or 64, 32), one per group of columns; q2g128z, a zero per group, too.
"""

from __future__ import annotations

from lutra.runtime.formats._uniform import Uniform

TYPICAL = "q2g128"


def variant(suffix: str) -> Uniform | None:
    """The format q2 + suffix."""
    return Uniform.variant("q2", 2, suffix)
