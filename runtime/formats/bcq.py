"""bcq: binary-coded weights (LUT-GEMM, Park et al. 2022): planes of -1 and 1, each with a scale per group.

Variants: bcq3g128, three planes in groups of 128 (or 64, 32) columns; bcq3g128z, an offset per group, too.
"""

from __future__ import annotations

import re

from lutra.runtime.formats._planes import BinaryPlanes

TYPICAL = "bcq3g128"


def variant(suffix: str) -> BinaryPlanes | None:
    """The format bcq + suffix."""
    found = re.fullmatch(r"([1-8])g(32|64|128)(z?)", suffix)
    return BinaryPlanes(int(found[1]), int(found[2]), 0.5, bool(found[3])) if found else None
