"""onebit: binary weights with a scale per column and one per row (OneBit, Xu et al. 2024).

W = diag(scale) sign(B) diag(columns): a binary matrix in b1 that sees x times the columns' scales.
"""

from __future__ import annotations

from lutra.runtime.formats._chained import Chained, Link

TYPICAL = "onebit"


def variant(suffix: str) -> Chained | None:
    """The format onebit; it has no variants."""
    return None if suffix else Chained(lambda rows, cols: [[Link("b1", rows, cols, scaled=True)]])
