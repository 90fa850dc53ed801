"""Codes on grids whose scales are codes themselves, as GGUF's k-quants have them.

Codes lie as in _uniform.py; a chunk is a group. Without offsets codes are signed, and stored from 0.

    data   uint8    [blocks, groups * bytes of a chunk]
    scale  int8     [blocks, groups * 16]; [blocks, groups * 32] if each group's offsets follow its scales
    unit   float16  [blocks, super-blocks * 16], or * 32: of these scales, and of these offsets
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lutra.runtime.formats import Matrix, Nested
from lutra.runtime.formats._blocks import ROWS, Layout, Parts, by_row, empty, fill_by_rows, fill_grid
from lutra.runtime.formats._uniform import Uniform

# What kernels there are for: bits, columns of a group, whether it has offsets.
KERNELS = {(2, 16, True), (4, 16, False), (6, 16, False), (4, 32, True), (5, 32, True)}


@dataclass(frozen=True)
class NestedGrids:
    """One format of the family. ACT_GROUP: columns of a group; block: of a super-block."""

    bits: int
    ACT_GROUP: int
    block: int
    offsets: bool

    @property
    def KERNEL(self) -> str:  # as every format has it
        """q4m32: 4 bits, offsets, groups of 32; q6s16: 6 bits, scales only, groups of 16"""
        return f"q{self.bits}{'m' if self.offsets else 's'}{self.ACT_GROUP}"

    @property
    def _codes(self) -> Uniform:
        return Uniform("q", self.bits, chunk=self.ACT_GROUP)

    def layout(self, rows: int, cols: int) -> Layout:
        """The parts of a [rows, cols] matrix."""
        blocks, grids = -(-rows // ROWS), 2 if self.offsets else 1
        return {
            "data": self._codes.layout(rows, cols)["data"],
            "scale": (np.int8, (blocks, -(-cols // self.ACT_GROUP) * grids * ROWS)),
            "unit": (np.float16, (blocks, -(-cols // self.block) * grids * ROWS)),
        }

    @property
    def _low(self) -> int:
        """The least code: with offsets codes count from 0."""
        return 0 if self.offsets else -(1 << self.bits - 1)

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix has such groups, and units that float16 holds."""
        if not isinstance(matrix, Nested) or not self._fits(matrix):
            return False
        codes = np.asarray(matrix.codes)
        return self._low <= int(codes.min()) and int(codes.max()) < self._low + (1 << self.bits)

    def _fits(self, matrix: Nested) -> bool:
        found = (matrix.group, matrix.block, len(matrix.scale))
        with np.errstate(over="ignore"):
            exact = matrix.unit.dtype == np.float16 or np.array_equal(matrix.unit, matrix.unit.astype(np.float16))
        return exact and found == (self.ACT_GROUP, self.block, 1 + self.offsets)

    def pack(self, matrix: Matrix) -> Parts:
        """The parts of such a matrix; ValueError for any other."""
        parts = empty(self.layout(*matrix.shape))
        fill_by_rows(parts, matrix, self._fill)
        return parts

    def _fill(self, parts: Parts, matrix: Matrix) -> None:
        if not isinstance(matrix, Nested) or not self._fits(matrix):
            raise ValueError("not the integers on nested grids that this format stores")
        self._codes.pack_codes(matrix.codes, parts["data"], -self._low)
        fill_grid(parts["scale"], *matrix.scale)
        fill_grid(parts["unit"], *matrix.unit)

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Nested:
        """The matrix these parts store. Every byte means something: none is invalid."""
        codes = self._codes.unpack_codes(parts["data"], rows, cols)
        if not self.offsets:
            codes = (codes - np.uint8(1 << self.bits - 1)).view(np.int8)
        scale, unit = (
            by_row(parts[name], rows).reshape(rows, -1, 1 + self.offsets).transpose(2, 0, 1)
            for name in ("scale", "unit")
        )
        return Nested(codes, scale.astype(np.int8), np.ascontiguousarray(unit), self.ACT_GROUP, self.block)


def variant(bits: int, suffix: str) -> NestedGrids | None:
    """The format that a suffix such as "g32s256m" names: groups of 32 in super-blocks of 256, with offsets."""
    found = re.fullmatch(r"g(\d+)s(\d+)(m?)", suffix)
    if not found:
        return None
    group, block, offsets = int(found[1]), int(found[2]), bool(found[3])
    known = (bits, group, offsets) in KERNELS and block in (group << shift for shift in range(8))
    return NestedGrids(bits, group, block, offsets) if known else None
