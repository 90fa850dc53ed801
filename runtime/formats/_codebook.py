"""Codes of a codebook of 8 or 16 values, with a scale per group of columns: NF4, MXFP4, IQ4_NL, BitMoD.

Codes lie as in q3 or q4 (_uniform.py). Kernels see a value as one or two digits of 7 bits, so any values are held to
1/8191 of the largest, and integers exactly:

    value = sum over d of weight_d * (table_d[code] - zero_d)

One code may stand for a value that each group chooses: that is one digit more, 1 for this code, whose weight the group
gives.

    data    uint8    [blocks, chunks * bits * 64]
    scale   float16  [blocks, groups * 16]; [blocks, groups * 32] if groups have a value of their own, which follows
    table   uint8    [planes * 16], 0..127
    digits  float32  [planes * 2], weight and zero of each
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lutra import native
from lutra.runtime.formats import Codebook, Matrix, to_float32
from lutra.runtime.formats._blocks import ROWS, Layout, Parts, by_row, empty, fill_by_rows, fill_grid
from lutra.runtime.formats._uniform import Uniform


@dataclass(frozen=True)
class Values:
    """One format of the family. values: those of the codes from 0; digits: how many tables they take.

    own: what a group can choose from for the code whose value is NaN.
    """

    values: tuple[float, ...]
    ACT_GROUP: int
    digits: int
    own: tuple[float, ...] = ()

    @property
    def _codes(self) -> Uniform:
        return Uniform("q", len(self.values).bit_length() - 1)

    @property
    def KERNEL(self) -> str:  # as every format has it
        """c3 or c4"""
        return f"c{self._codes.bits}"

    def layout(self, rows: int, cols: int) -> Layout:
        """The parts of a [rows, cols] matrix."""
        groups, planes = -(-cols // self.ACT_GROUP), self.digits + bool(self.own)
        return {
            "data": self._codes.layout(rows, cols)["data"],
            "scale": (np.float16, (-(-rows // ROWS), groups * ROWS * (2 if self.own else 1))),
            "table": (np.uint8, (planes * 16,)),
            "digits": (np.float32, (planes * 2,)),
        }

    def _tables(self) -> tuple[np.ndarray, np.ndarray]:
        values = np.array(self.values)
        own = np.isnan(values)
        values[own] = 0
        if self.digits == 1:  # multiples of a unit
            unit = np.abs(values[values != 0]).min()
            digits = [(values / unit - values.min() / unit, unit, -values.min() / unit)]
        else:
            unit = 1 if (values == np.rint(values)).all() else np.abs(values).max() / 8191
            whole = np.rint(values / unit).astype(int) + 8192
            digits = [(whole >> 7, 128 * unit, 64), (whole & 127, unit, 0)]
        if self.own:
            digits.append((own, 1, 0))
        table = np.zeros((len(digits), 16), np.uint8)
        for row, (digit, _, _) in zip(table, digits, strict=True):
            row[: len(values)] = digit
        return table.reshape(-1), np.array([each[1:] for each in digits], np.float32).reshape(-1)

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix has these values, and scales that float16 holds."""
        if not isinstance(matrix, Codebook) or not self._same(matrix):
            return False
        with np.errstate(over="ignore"):
            return all(np.array_equal(x, x.astype(np.float16)) for x in (matrix.scale, matrix.own) if x is not None)

    def _same(self, matrix: Codebook) -> bool:
        values = np.array(self.values, np.float32)
        alike = np.array_equal(matrix.values, values, equal_nan=True)
        return alike and matrix.group == self.ACT_GROUP and matrix.unit is None

    def pack(self, matrix: Matrix) -> Parts:
        """The parts of a matrix: codes as they are, floats rounded to the nearest value; ValueError for others."""
        parts = empty(self.layout(*matrix.shape))
        parts["table"][:], parts["digits"][:] = self._tables()
        fill_by_rows({name: parts[name] for name in ("data", "scale")}, matrix, self._fill)
        return parts

    def _fill(self, parts: Parts, matrix: Matrix) -> None:
        book = matrix if isinstance(matrix, Codebook) else self._nearest(to_float32(matrix))
        if not self._same(book):
            raise ValueError("another codebook")
        self._codes.pack_codes(book.codes, parts["data"])
        fill_grid(parts["scale"], book.scale, *([] if book.own is None else [book.own]))

    def _nearest(self, floats: np.ndarray) -> Codebook:
        """Every float's nearest value, when the largest of a group meets the largest value.

        Of values to choose from, a group takes the one that leaves the least squared error (BitMoD: Chen et al. 2025,
        section III).
        """
        (rows, cols), group = floats.shape, self.ACT_GROUP
        padded = np.zeros((rows, -(-cols // group), group), np.float32)
        padded.reshape(rows, -1)[:, :cols] = floats
        best: tuple[np.ndarray, ...] = ()
        for own in self.own or (None,):
            codes, scale, error = _rounded(padded, [own if np.isnan(v) else v for v in self.values])  # type: ignore[misc]
            found = (error, codes, scale, np.full_like(scale, own or 0))
            worse = best[0] <= error if best else np.zeros_like(error, bool)
            best = tuple(
                np.where(worse.reshape(worse.shape + (1,) * (b.ndim - 2)), a, b)
                for a, b in zip(best or found, found, strict=True)
            )
        _, codes, scale, chosen = best
        flat = codes.reshape(rows, -1)[:, :cols]
        return Codebook(flat, np.array(self.values, np.float32), scale, group, chosen if self.own else None)

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Codebook:
        """The matrix again, its values as the tables hold them. Every byte means something: none is invalid."""
        digits, tables = parts["digits"].reshape(-1, 2).astype(float), parts["table"].reshape(-1, 16)
        known = slice(self.digits)
        values = ((tables[known] - digits[known, 1:]) * digits[known, :1]).sum(axis=0).astype(np.float32)
        grids = by_row(parts["scale"], rows)
        own = None
        if self.own:
            values[tables[-1] == 1] = np.nan
            grids, own = grids[:, ::2], grids[:, 1::2]
        codes = self._codes.unpack_codes(parts["data"], rows, cols)
        return Codebook(codes, values[: len(self.values)], grids, self.ACT_GROUP, own)


def _rounded(groups: np.ndarray, values: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floats [rows, groups, columns] as the codes of the nearest values; scales and squared errors [rows, groups]."""
    known = np.array(values, np.float32)
    scale = np.maximum(groups.max(axis=2), -groups.min(axis=2)) / np.abs(known).max()
    scale = scale.astype(np.float16).astype(np.float32)
    order = np.argsort(known, kind="stable")
    flat = groups.reshape(-1, groups.shape[2])
    codes, error = native.nearest(flat, scale.reshape(-1), known[order], order.astype(np.uint8))
    return codes.reshape(groups.shape), scale, error.reshape(scale.shape)
