"""fbi: binary weights with a scale and an offset per column (FBI-LLM, Ma et al. 2024).

W = sign(B) diag(scale) + 1 offset^T: a binary matrix in b1 that sees x times the scales, and one number, x . offset,
that every output gains. The variant fbi-q2 has weights of 0 as well, as the sign of 0 is.
"""

from __future__ import annotations

from lutra.runtime.formats._chained import Chained, Link

TYPICAL = "fbi"


def variant(suffix: str) -> Chained | None:
    """The format fbi + suffix."""
    signs = {"": "b1", "-q2": "q2"}.get(suffix)
    if signs is None:
        return None
    return Chained(
        lambda rows, cols: [[Link(signs, rows, cols, scaled=True)], [Link("f32", 1, cols), Link("f32", rows, 1)]]
    )
