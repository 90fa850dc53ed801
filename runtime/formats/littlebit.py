"""littlebit: binary low-rank factors with scales on every side (LittleBit, Lee et al. 2025).

W = diag(u1) sign(U) diag(u2 * v1) sign(V) diag(v2), plus a second such product for what the first leaves over. The
factors are binary matrices in b1: the scales of V's rows are u2 * v1, those of U's rows u1, and v2 scales x.

Variants: littlebit2r80, two products of rank 80 each; littlebit-0.1, two of the rank that the paper's budget of 0.1
bits per weight allows.
"""

from __future__ import annotations

import re
from functools import partial

from lutra.runtime.formats._chained import Chained, Link

TYPICAL = "littlebit-0.55"


def variant(suffix: str) -> Chained | None:
    """The format littlebit + suffix."""
    if found := re.fullmatch(r"([12])r([1-9]\d{0,5})", suffix):
        return Chained(partial(_links, products=int(found[1]), rank=int(found[2])))
    if found := re.fullmatch(r"-(\d\.\d{1,3})", suffix):
        return Chained(partial(_links, products=2, bits=float(found[1])))
    return None


def _links(rows: int, cols: int, products: int, rank: int = 0, bits: float = 0) -> list[list[Link]]:
    rank = rank or rank_of(rows, cols, bits)
    return [[Link("b1", rank, cols, scaled=True), Link("b1", rows, rank)] for _ in range(products)]


def rank_of(rows: int, cols: int, bits: float) -> int:
    """The rank of each of two products that together take so many bits per weight: a multiple of 8, at least 8."""
    rank = (rows * cols * bits - 32 * (rows + cols)) / (2 * (rows + cols + 16))
    return max(int(rank) // 8 * 8, 8)
