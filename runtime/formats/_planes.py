"""Binary planes, each with a scale per group of columns: LUT-GEMM's binary-coded weights, DB-LLM's dual binaries.

Rows come in blocks of 16, columns in groups. A group is one plane after the other, each in chunks of 32 columns that
lie as a plane of 1 bit does in _uniform.py. Rows and columns beyond the matrix's are 0.

    data    uint8    [blocks, chunks * planes * 64]
    scale   float16  [blocks, groups * planes * 16]
    zero    float32  [1]
    offset  float16  [blocks, groups * 16]; [1], unused, if the format has none
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lutra.runtime.formats import Matrix, Planes
from lutra.runtime.formats._blocks import ROWS, Layout, Parts, by_row, empty, fill_by_rows, fill_grid
from lutra.runtime.formats._uniform import CHUNK, Uniform

_ONE_PLANE = Uniform("b1", 1)


@dataclass(frozen=True)
class BinaryPlanes:
    """One format of the family. zero: 1/2 for planes of -1 and 1, 0 for planes of 0 and 1."""

    planes: int
    ACT_GROUP: int
    zero: float
    offsets: bool = False
    KERNEL: str = "bcq"

    def layout(self, rows: int, cols: int) -> Layout:
        """The parts of a [rows, cols] matrix."""
        blocks, chunks, groups = -(-rows // ROWS), -(-cols // CHUNK), -(-cols // self.ACT_GROUP)
        return {
            "data": (np.uint8, (blocks, chunks * self.planes * 64)),
            "scale": (np.float16, (blocks, groups * self.planes * ROWS)),
            "zero": (np.float32, (1,)),
            "offset": (np.float16, (blocks, groups * ROWS) if self.offsets else (1,)),
        }

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix is such planes, with scales and offsets that float16 holds."""
        if not self._holds(matrix):
            return False
        assert isinstance(matrix, Planes)
        with np.errstate(over="ignore"):
            return all(np.array_equal(x, x.astype(np.float16)) for x in (matrix.scale, matrix.offset) if x is not None)

    def _holds(self, matrix: object) -> bool:
        return (
            isinstance(matrix, Planes)
            and (len(matrix.bits), matrix.group, matrix.zero) == (self.planes, self.ACT_GROUP, self.zero)
            and (self.offsets or matrix.offset is None)
        )

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of a matrix of planes, scales rounded to float16; ValueError for any other."""
        if not self._holds(matrix):
            raise ValueError(f"not {self.planes} binary planes around {self.zero} in groups of {self.ACT_GROUP}")
        assert isinstance(matrix, Planes)
        parts = empty(self.layout(*matrix.shape))
        parts["zero"][:] = self.zero
        each = {name: part for name, part in parts.items() if name != "zero" and (name != "offset" or self.offsets)}
        fill_by_rows(each, matrix, self._fill)
        return parts

    def _fill(self, parts: Parts, matrix: Matrix) -> None:
        assert isinstance(matrix, Planes)
        for plane, columns, place in self._spans(matrix.shape[1]):
            data = np.empty((len(parts["data"]), place.stop - place.start), np.uint8)
            _ONE_PLANE.pack_codes(matrix.bits[plane, :, columns], data)
            parts["data"][:, place] = data
        fill_grid(parts["scale"], *matrix.scale)
        if matrix.offset is not None:
            fill_grid(parts["offset"], matrix.offset)

    def _spans(self, cols: int) -> Iterator[tuple[int, slice, slice]]:
        """Plane, columns and bytes of every plane of every group."""
        for begin in range(0, cols, self.ACT_GROUP):
            end = min(begin + self.ACT_GROUP, cols)
            size, first = -(-(end - begin) // CHUNK) * 64, begin // CHUNK * 64 * self.planes
            for plane in range(self.planes):
                yield plane, slice(begin, end), slice(first + plane * size, first + (plane + 1) * size)

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Planes:
        """The matrix again. Every byte means something: none is invalid."""
        bits = np.empty((self.planes, rows, cols), np.uint8)
        for plane, columns, place in self._spans(cols):
            width = columns.stop - columns.start
            bits[plane, :, columns] = _ONE_PLANE.unpack_codes(parts["data"][:, place], rows, width)
        scale = by_row(parts["scale"], rows).reshape(rows, -1, self.planes).transpose(2, 0, 1)
        offset = by_row(parts["offset"], rows) if self.offsets else None
        return Planes(bits, np.ascontiguousarray(scale), self.ACT_GROUP, offset, float(parts["zero"][0]))
