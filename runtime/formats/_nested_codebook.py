"""Codes of a codebook of 16 small integers, whose groups' scales have 8 bits, times a float for many groups: NVFP4.

Codes lie as in q4 (_uniform.py); a chunk is a group. A value is one digit of 7 bits, from 64, or two, base 128.

    data   uint8    [blocks, groups * bytes of a chunk]
    scale  int8, or uint8: the patterns of E4M3  [blocks, groups * 16]
    unit   float32  [blocks, super-blocks * 16]
    table  uint8    [planes * 16], 0..127
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.runtime.formats import E4M3, Codebook, Matrix, is_finite, to_float32
from lutra.runtime.formats._blocks import ROWS, Layout, Parts, by_row, empty, fill_by_rows, fill_grid
from lutra.runtime.formats._uniform import Uniform


@dataclass(frozen=True)
class NestedValues:
    """One format of the family. values: those of the codes from 0. ACT_GROUP: columns of a group. block: of a
    super-block, 0: all. floats: whether scales are E4M3, not int8."""

    values: tuple[int, ...]
    ACT_GROUP: int
    block: int
    floats: bool

    @property
    def KERNEL(self) -> str:  # as every format has it
        """c4i32: scales are integers, groups have 32 columns; c4f16: floats, 16"""
        return f"c4{'f' if self.floats else 'i'}{self.ACT_GROUP}"

    @property
    def _codes(self) -> Uniform:
        return Uniform("q", 4, chunk=self.ACT_GROUP)

    @property
    def _planes(self) -> int:
        return 1 if max(map(abs, self.values)) < 64 else 2

    def layout(self, rows: int, cols: int) -> Layout:
        """The parts of a [rows, cols] matrix."""
        blocks, supers = -(-rows // ROWS), -(-cols // self.block) if self.block else 1
        return {
            "data": self._codes.layout(rows, cols)["data"],
            "scale": (np.uint8 if self.floats else np.int8, (blocks, -(-cols // self.ACT_GROUP) * ROWS)),
            "unit": (np.float32, (blocks, supers * ROWS)),
            "table": (np.uint8, (self._planes * 16,)),
        }

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix has these values, and scales of 8 bits in such groups."""
        if not isinstance(matrix, Codebook) or matrix.unit is None or matrix.own is not None:
            return False
        alike = (matrix.group, matrix.block) == (self.ACT_GROUP, self.block)
        scales = isinstance(matrix.scale, E4M3) if self.floats else matrix.scale.dtype == np.int8
        return alike and scales and np.array_equal(matrix.values, self.values)

    def pack(self, matrix: Matrix) -> Parts:
        """The parts of such a matrix; ValueError for any other."""
        parts = empty(self.layout(*matrix.shape))
        values, table = np.array(self.values) + 64 * 128 ** (self._planes - 1), parts["table"].reshape(-1, 16)
        table[0], table[-1] = values >> 7 * (self._planes - 1), values & 127
        fill_by_rows({name: parts[name] for name in ("data", "scale", "unit")}, matrix, self._fill)
        return parts

    def _fill(self, parts: Parts, matrix: Matrix) -> None:
        if not isinstance(matrix, Codebook) or not self.accepts(matrix):
            raise ValueError("not the codebook that this format stores")
        assert matrix.unit is not None
        if not is_finite(matrix.scale):
            raise ValueError("scales that are not finite numbers")
        self._codes.pack_codes(matrix.codes, parts["data"])
        fill_grid(parts["scale"], matrix.scale.view(np.ndarray))
        fill_grid(parts["unit"], to_float32(matrix.unit))

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Codebook:
        """The matrix these parts store."""
        codes = self._codes.unpack_codes(parts["data"], rows, cols)
        values = parts["table"].reshape(-1, 16).astype(np.float32)
        values[0] -= 64
        whole = values[0] if len(values) == 1 else 128 * values[0] + values[1]
        scale = by_row(parts["scale"], rows).astype(parts["scale"].dtype)
        scale = scale.view(E4M3) if self.floats else scale
        return Codebook(codes, whole, scale, self.ACT_GROUP, unit=by_row(parts["unit"], rows), block=self.block)
