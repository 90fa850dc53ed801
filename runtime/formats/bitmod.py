"""bitmod: 3- and 4-bit floats whose negative zero is a value that every group chooses (BitMoD, Chen et al. 2025).

Variants: bitmod3g128 and bitmod4g128, or in groups of 32 or 64.
"""

from __future__ import annotations

import re

from lutra.runtime.formats._codebook import Values

TYPICAL = "bitmod4g128"
_CHOSEN = float("nan")
# By bits: values from code 0, and what a group can choose from.
_TYPES = {
    "3": ((0, 1, 2, 4, _CHOSEN, -1, -2, -4), (3, -3, 6, -6)),
    "4": ((0, 1, 2, 3, 4, 6, 8, 12, _CHOSEN, -1, -2, -3, -4, -6, -8, -12), (10, -10, 16, -16)),
}


def variant(suffix: str) -> Values | None:
    """The format bitmod + suffix."""
    found = re.fullmatch(r"([34])g(32|64|128)", suffix)
    return Values(_TYPES[found[1]][0], int(found[2]), 1, _TYPES[found[1]][1]) if found else None
