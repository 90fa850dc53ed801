"""db: dual-binary weights (DB-LLM, Chen et al. 2024): two planes of 0 and 1, each with a scale per group.

Variants: dbg128, dbg64, dbg32, by the columns of a group.
"""

from __future__ import annotations

import re

from lutra.runtime.formats._planes import BinaryPlanes

TYPICAL = "dbg64"


def variant(suffix: str) -> BinaryPlanes | None:
    """The format db + suffix."""
    found = re.fullmatch(r"g(32|64|128)", suffix)
    return BinaryPlanes(2, int(found[1]), 0.0) if found else None
