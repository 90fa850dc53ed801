"""f8: 8-bit floats, E4M3, row by row, with a scale per row. Float activations.

Variant: f8g128, a scale per 128 columns of a row.

data   uint8    [rows, cols], patterns; those that are no numbers count as 480 and -480
scale  float32  [rows, groups]
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.runtime.formats import E4M3, Matrix, Scaled, Unread, to_float32

TYPICAL = None  # no floats are rounded to it


@dataclass(frozen=True)
class Floats8:
    """One format of the family. group: columns that share a scale, 0: all."""

    group: int
    KERNEL: str = "f8"
    ACT_GROUP: int | None = None

    def layout(self, rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The parts of a [rows, cols] matrix."""
        groups = -(-cols // self.group) if self.group else 1
        return {"data": (np.uint8, (rows, cols)), "scale": (np.float32, (rows, groups))}

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix is such floats with such scales already."""
        return isinstance(matrix, Scaled) and matrix.group == self.group and isinstance(matrix.values, E4M3)

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of such a matrix, used where it lies; ValueError for any other."""
        matrix = matrix[:] if isinstance(matrix, Unread) else matrix
        if not isinstance(matrix, Scaled) or not self.accepts(matrix):
            raise ValueError("not the scaled 8-bit floats that this format stores")
        return {"data": matrix.values.view(np.ndarray), "scale": np.ascontiguousarray(matrix.scale)}

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> np.ndarray:
        """The matrix as float32."""
        data = parts["data"]
        values = to_float32(data.view(E4M3))
        values = np.where(data & 127 == 127, np.where(data < 128, np.float32(480), np.float32(-480)), values)
        return to_float32(Scaled(values, parts["scale"], self.group))


def variant(suffix: str) -> Floats8 | None:
    """The format f8 + suffix."""
    return {"": Floats8(0), "g128": Floats8(128)}.get(suffix)
