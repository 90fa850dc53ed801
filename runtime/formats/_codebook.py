"""4-bit codes of a codebook of 16 values, with a scale per group of columns: NF4, MXFP4.

Codes lie as in q4 (_uniform.py). Kernels see a value as one or two digits of 7 bits, so any 16 values are held to
1/8191 of the largest, and small integers exactly:

    value = sum over d of weight_d * (table_d[code] - zero_d)

    data    uint8    [blocks, chunks * 256]
    scale   float16  [blocks, groups * 16]
    table   uint8    [planes * 16], 0..127
    digits  float32  [planes * 2], weight and zero of each
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lutra.runtime.formats import Codebook, Matrix, to_float32
from lutra.runtime.formats._uniform import ROWS, Uniform, by_block, by_row

_CODES = Uniform("q4", 4)
_AT_ONCE = 512  # rows packed together: few enough to stay in cache


@dataclass(frozen=True)
class Values16:
    """One format of the family. values: those of codes 0..15; digits: how many tables they take."""

    values: tuple[float, ...]
    ACT_GROUP: int
    digits: int
    KERNEL: str = "c4"

    def layout(self, rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The parts of a [rows, cols] matrix."""
        groups = -(-cols // self.ACT_GROUP)
        return {
            "data": _CODES.layout(rows, cols)["data"],
            "scale": (np.float16, (-(-rows // ROWS), groups * ROWS)),
            "table": (np.uint8, (self.digits * 16,)),
            "digits": (np.float32, (self.digits * 2,)),
        }

    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        values = np.array(self.values)
        if self.digits == 1:  # multiples of a unit
            unit = np.abs(values[values != 0]).min()
            table, zero = values / unit, -values.min() / unit
            return (table + zero).astype(np.uint8), np.array([unit, zero], np.float32)
        unit = np.abs(values).max() / 8191
        whole = np.rint(values / unit).astype(int) + 8192
        return np.concatenate([whole >> 7, whole & 127]).astype(np.uint8), np.array(
            [128 * unit, 64, unit, 0], np.float32
        )

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix has these values, and scales that float16 holds."""
        if not isinstance(matrix, Codebook) or matrix.group != self.ACT_GROUP:
            return False
        with np.errstate(over="ignore"):
            same = np.array_equal(matrix.scale, matrix.scale.astype(np.float16))
        return same and np.array_equal(matrix.values, np.array(self.values, np.float32))

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of a matrix: codes as they are, floats rounded to the nearest value; ValueError for others."""
        rows, cols = matrix.shape
        parts: dict[str, np.ndarray] = {name: np.zeros(s, t) for name, (t, s) in self.layout(rows, cols).items()}
        parts["table"][:], parts["digits"][:] = self._tables()
        for begin in range(0, rows, _AT_ONCE):
            some = matrix[begin : begin + _AT_ONCE]
            book = some if isinstance(some, Codebook) else self._nearest(to_float32(some))
            if book.group != self.ACT_GROUP or not np.array_equal(book.values, np.array(self.values, np.float32)):
                raise ValueError("another codebook")
            blocks = slice(begin // ROWS, begin // ROWS - (-len(book.codes) // ROWS))
            parts["data"][blocks], parts["scale"][blocks] = _CODES.pack_codes(book.codes), by_block(book.scale)
        if not np.isfinite(parts["scale"]).all():
            raise ValueError("scales beyond float16's range")
        return parts

    def _nearest(self, floats: np.ndarray) -> Codebook:
        """Every float's nearest value, when the largest of a group meets the largest value."""
        (rows, cols), group = floats.shape, self.ACT_GROUP
        padded = np.zeros((rows, -(-cols // group) * group), np.float32)
        padded[:, :cols] = floats
        values = np.array(self.values, np.float32)
        scale = np.abs(padded.reshape(rows, -1, group)).max(axis=2) / np.abs(values).max()
        scale = scale.astype(np.float16).astype(np.float32)
        order = np.argsort(values, kind="stable")
        middle = (values[order][1:] + values[order][:-1]) / 2
        wanted = floats / np.where(scale == 0, np.float32(1), scale)[:, np.arange(cols) // group]
        codes = order[np.searchsorted(middle, wanted)].astype(np.uint8)
        return Codebook(codes, values, scale, group)

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Codebook:
        """The matrix again, its values as the tables hold them. Every byte means something: none is invalid."""
        digits = parts["digits"].reshape(-1, 2).astype(float)
        values = ((parts["table"].reshape(-1, 16) - digits[:, 1:]) * digits[:, :1]).sum(axis=0).astype(np.float32)
        codes = _CODES.unpack_codes(parts["data"], rows, cols)
        return Codebook(codes, values, by_row(parts["scale"], rows), self.ACT_GROUP)
