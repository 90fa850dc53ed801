"""fbi: binary weights with a scale and an offset per column (FBI-LLM, Ma et al. 2024).

W = sign(B) diag(scale) + 1 offset^T: a binary matrix in b1 that sees x times the scales, and one number, x . offset,
that every output gains.
"""

from __future__ import annotations

from lutra.runtime.formats._chained import Chained, Link


def _links(rows: int, cols: int) -> list[list[Link]]:
    return [[Link("b1", rows, cols, scaled=True)], [Link("f32", 1, cols), Link("f32", rows, 1)]]


_FORMAT = Chained(_links)
KERNEL, ACT_GROUP = _FORMAT.KERNEL, _FORMAT.ACT_GROUP
layout, accepts, pack, unpack, chains = (
    _FORMAT.layout,
    _FORMAT.accepts,
    _FORMAT.pack,
    _FORMAT.unpack,
    _FORMAT.chains,
)
