"""rotated: matrices that meet x behind a rotation, in another format: PrismML's Ternary Bonsai 2 (2026).

A rotation spreads what is large over many columns, which few levels then hold better (QuaRot: Ashkboos et al. 2024).
rotated1024-q2g128 is q2g128 behind Walsh-Hadamard matrices of 1024 columns; rotated1024o-q2g128 takes x's columns in
an order first. Made for each matrix as it is needed, so no variant is typical.

    signs          float32 [columns], 1 and -1: what x is multiplied by
    order          int32 [columns], the columns of x in the order it meets them
    matrix.<part>  the matrix's parts, in its own format
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import Matrix, Packed, Rotated, codec

TYPICAL = None
LARGEST = 1 << 16  # block


@dataclass(frozen=True)
class Rotation:
    """One format of the family. block: columns that are mixed; ordered: whether they come in another order."""

    block: int
    ordered: bool
    format: str
    KERNEL: str = ""
    ACT_GROUP: int | None = None

    @property
    def inner(self) -> Any:
        """The format behind the rotation."""
        return codec(self.format)

    def layout(self, rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The parts of a [rows, cols] matrix. CorruptModelError if no blocks make up the columns."""
        if cols % self.block:
            raise CorruptModelError(f"{cols} columns are no blocks of {self.block}")
        parts: dict[str, tuple[type, tuple[int, ...]]] = {"signs": (np.float32, (cols,))}
        if self.ordered:
            parts["order"] = (np.int32, (cols,))
        return parts | {f"matrix.{part}": what for part, what in self.inner.layout(rows, cols).items()}

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix is rotated so, and its format holds it exactly."""
        return isinstance(matrix, Rotated) and self._fits(matrix) and self.inner.accepts(matrix.matrix)

    def _fits(self, matrix: Rotated) -> bool:
        return matrix.block == self.block and (matrix.order is not None) == self.ordered

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of such a matrix; ValueError for any other."""
        if not isinstance(matrix, Rotated) or not self._fits(matrix):
            raise ValueError("not a matrix behind the rotation that this format stores")
        parts = {"signs": matrix.signs} if matrix.order is None else {"signs": matrix.signs, "order": matrix.order}
        return parts | {f"matrix.{part}": array for part, array in self.inner.pack(matrix.matrix).items()}

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Rotated:
        """The matrix these parts store."""
        signs, order, inner = self.rotation(Packed("", (rows, cols), parts))
        return Rotated(inner.matrix, signs, self.block, order)

    def rotation(self, packed: Packed) -> tuple[np.ndarray, np.ndarray | None, Packed]:
        """Signs, order, and the matrix behind them."""
        own = {part: packed.parts[f"matrix.{part}"] for part in self.inner.layout(*packed.shape)}
        return packed.parts["signs"], packed.parts.get("order"), Packed(self.format, packed.shape, own)


def variant(suffix: str) -> Rotation | None:
    """The format rotated + suffix."""
    found = re.fullmatch(r"([1-9]\d{0,5})(o?)-(?!rotated|rows|ordered|experts)(.+)", suffix)
    block = int(found[1]) if found else 0
    if not found or block & (block - 1) or not 2 <= block <= LARGEST:
        return None  # names come from files: they do not nest
    return Rotation(block, bool(found[2]), found[3])
