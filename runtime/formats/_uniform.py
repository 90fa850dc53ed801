"""Weights on a uniform grid, 1 to 6 or 8 bits, with a scale and a zero per group of columns or per row.

W[o, i] = (code - zero) * scale: GPTQ's grids; symmetric ones, whose zero is a constant; binary weights, -1 and 1, as
codes 0 and 1 around 1/2; ParetoQ's grid without a zero level, around 3/2.

Rows come in blocks of 16, columns in chunks of 32: eight steps of four. A code's bits lie in planes: the low 4, 2 or 1
bits, and what is left. A plane that is w bits wide takes w vectors of 64 bytes, [16 rows][4 bytes]; byte b of a row
holds column b of several steps, the first step in its lowest bits. Rows and columns beyond the matrix's are 0.

    data   uint8    [blocks, chunks * bits * 64]
    scale  float16  [blocks, groups * 16]; float32 [blocks, 16] if a row has one scale
    zero   float16  [blocks, groups * 16]; float32 [1] if there is one for all
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from lutra import native
from lutra.runtime.formats import Coded, Matrix, to_float32
from lutra.runtime.formats._blocks import ROWS, Layout, Parts, by_row, empty, fill_by_rows, fill_grid

BYTES, CHUNK = 4, 32
PER_ROW = 128  # columns that share an activation scale where a row of weights has one scale
GROUPS = (32, 64, 128)


@dataclass(frozen=True)
class Uniform:
    """One format of the family. group: columns that share a scale, 0: all; zeros: whether each group has its own.

    chunk: columns whose planes lie together.
    """

    KERNEL: str
    bits: int
    group: int = 0
    zeros: bool = False
    ACT_GROUP: int = PER_ROW
    chunk: int = CHUNK

    @classmethod
    def variant(cls, kernel: str, bits: int, suffix: str) -> Uniform | None:
        """The format that a suffix such as "g128z" names: groups of 128, zeros of their own. None for any other."""
        found = re.fullmatch(r"(?:g(\d+))?(z?)", suffix)
        group = int(found[1] or 0) if found else -1
        return cls(kernel, bits, group, bool(found[2]), group or PER_ROW) if found and group in (0, *GROUPS) else None

    def layout(self, rows: int, cols: int) -> Layout:
        """The parts of a [rows, cols] matrix."""
        blocks, chunks = -(-rows // ROWS), -(-cols // self.chunk)
        groups = -(-cols // self.group) if self.group else 1
        return {
            "data": (np.uint8, (blocks, chunks * self.bits * self.chunk * ROWS // 8)),
            "scale": (np.float16 if groups > 1 else np.float32, (blocks, groups * ROWS)),
            "zero": (np.float16, (blocks, groups * ROWS)) if self.zeros else (np.float32, (1,)),
        }

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix is integers on grids that these groups hold exactly."""
        try:
            codes, add, scale, zero = self._fit(matrix)
        except ValueError:
            return False
        exact = [] if zero.size == 1 else [zero]
        exact += [scale] if scale.shape[1] > 1 else []
        fits = not (np.asarray(codes).view(np.uint8) + add >> self.bits).any()
        with np.errstate(over="ignore"):
            return fits and all(np.array_equal(x, x.astype(np.float16)) for x in exact)

    def _fit(self, matrix: object) -> tuple[np.ndarray, np.uint8, np.ndarray, np.ndarray]:
        """Codes, as bytes, and what makes them count from 0; scales and zeros as stored but not yet rounded.

        ValueError if they cannot be stored; codes of more bits are not among the reasons.
        """
        if not isinstance(matrix, Coded):
            raise ValueError("not integers")
        codes, add = matrix.codes, np.uint8(0)
        scale, zero = matrix.regrouped(self.group)
        zero = np.zeros((1, 1), np.float32) if zero is None else zero
        if codes.dtype == np.int8 and self.bits == 1:  # -1 and 1
            if not np.array_equal(np.abs(codes), np.ones(codes.shape)):
                raise ValueError(f"{self.KERNEL} holds -1 and 1, not codes {codes.min()}..{codes.max()}")
            codes, scale, zero = np.asarray(codes) > 0, 2 * scale, zero / 2 + np.float32(0.5)
        elif codes.dtype == np.int8:
            add = np.uint8(1 << self.bits - 1)
            zero = zero + np.float32(add)
        if not self.zeros:
            if (zero != zero.flat[0]).any():
                raise ValueError("zeros that differ")
            zero = zero.reshape(-1)[:1]
        return codes, add, scale, np.broadcast_to(zero, scale.shape) if self.zeros else zero

    def pack(self, matrix: Matrix) -> Parts:
        """The parts of a matrix: integers as they are, floats rounded to the nearest of the grid's steps.

        ValueError for integers that the format cannot hold.
        """
        parts = empty(self.layout(*matrix.shape))
        zeros: set[float] = set()  # of the pieces

        def fill(some: Parts, rows: Matrix) -> None:
            codes, add, scale, zero = self._fit(rows if isinstance(rows, Coded) else self._round(to_float32(rows)))
            self.pack_codes(codes, some["data"], int(add))
            fill_grid(some["scale"], scale)
            if self.zeros:
                fill_grid(some["zero"], zero)
            else:
                zeros.add(zero[0])

        fill_by_rows({name: part for name, part in parts.items() if name != "zero" or self.zeros}, matrix, fill)
        if len(zeros) > 1:
            raise ValueError("zeros that differ")
        if zeros:
            parts["zero"][:] = zeros.pop()
        return parts

    def _round(self, values: np.ndarray) -> Coded:
        """The nearest points of grids from each group's least to its largest value, or of symmetric ones."""
        rows, cols = values.shape
        group, levels = self.group or cols, 1 << self.bits
        padded = np.zeros((rows, -(-cols // group) * group), np.float32)
        padded[:, :cols] = values
        groups = padded.reshape(rows, -1, group)
        if self.bits == 1:
            return Coded(np.where(values < 0, 0, 1).astype(np.uint8), *self._binary(groups, cols), self.group)
        if self.zeros:
            low, high = np.minimum(groups.min(axis=2), 0), np.maximum(groups.max(axis=2), 0)
            scale = _stored((high - low) / np.float32(levels - 1))
            zero = np.clip(np.rint(-low / _nonzero(scale)), 0, levels - 1)
        else:  # the value of largest magnitude becomes the end of the grid
            end = np.take_along_axis(groups, np.abs(groups).argmax(axis=2)[..., None], axis=2)[..., 0]
            scale = _stored(end / np.float32(-(levels // 2)))
            zero = np.full_like(scale, levels // 2)
        codes = np.clip(np.rint(groups / _nonzero(scale)[..., None]) + zero[..., None], 0, levels - 1)
        return Coded(codes.reshape(rows, -1)[:, :cols].astype(np.uint8), scale, zero, self.group)

    def _binary(self, groups: np.ndarray, cols: int) -> tuple[np.ndarray, np.ndarray]:
        """-1 and 1 with the mean magnitude as their scale: the least squared error (Rastegari et al. 2016, 3.1)."""
        counts = np.minimum(groups.shape[2], cols - groups.shape[2] * np.arange(groups.shape[1]))
        scale = 2 * np.abs(groups).sum(axis=2) / counts.astype(np.float32)
        return scale, np.full_like(scale, 0.5)

    def pack_codes(self, codes: np.ndarray, data: np.ndarray, add: int = 0) -> None:
        """Codes [rows, cols], a byte each, plus ``add``, to data: uint8 [blocks, chunks * bits * 64].

        ValueError for codes of more bits.
        """
        native.pack_codes(codes, self.bits, self.chunk, add, data)

    @property
    def planes(self) -> list[tuple[int, int]]:
        """(width, place of its lowest bit) of every plane."""
        low = 4 if self.bits >= 4 else 2 if self.bits >= 2 else 1
        return [(low, 0)] if low == self.bits else [(low, 0), (self.bits - low, low)]

    def unpack_codes(self, data: np.ndarray, rows: int, cols: int) -> np.ndarray:
        """The codes again."""
        blocks, steps = len(data), self.chunk // BYTES
        vectors = data.reshape(blocks, -1, self.bits * steps // 8, ROWS, BYTES)
        codes = np.zeros((blocks, vectors.shape[1], steps, ROWS, BYTES), np.uint8)
        for width, shift in self.planes:
            for step in range(steps):
                vector, field = divmod(step * width, 8)
                codes[:, :, step] |= (vectors[:, :, shift * steps // 8 + vector] >> field & (1 << width) - 1) << shift
        return np.ascontiguousarray(codes.transpose(0, 3, 1, 2, 4).reshape(blocks * ROWS, -1)[:rows, :cols])

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Coded:
        """The matrix again. Every byte means something: none is invalid."""
        scale, zero = by_row(parts["scale"], rows), parts["zero"]
        zero = by_row(zero, rows) if self.zeros else np.broadcast_to(zero[None], scale.shape)
        return Coded(self.unpack_codes(parts["data"], rows, cols), scale, zero, self.group)


def _stored(scale: np.ndarray) -> np.ndarray:
    """Scales as they will be stored, so that codes are chosen for those."""
    return scale.astype(np.float16).astype(np.float32) if scale.shape[1] > 1 else scale


def _nonzero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, np.float32(1), scale)
