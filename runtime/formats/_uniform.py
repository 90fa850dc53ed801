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

from lutra.runtime.formats import Coded, Matrix, to_float32

ROWS, BYTES, CHUNK = 16, 4, 32
PER_ROW = 128  # columns that share an activation scale where a row of weights has one scale
GROUPS = (32, 64, 128)
AT_ONCE = 512  # rows packed together: few enough to stay in cache


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

    def layout(self, rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
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
            _, scale, zero = self._fit(matrix)
        except ValueError:
            return False
        exact = [] if zero.size == 1 else [zero]
        exact += [scale] if scale.shape[1] > 1 else []
        with np.errstate(over="ignore"):
            return all(np.array_equal(x, x.astype(np.float16)) for x in exact)

    def _fit(self, matrix: object) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes from 0, float32 scales and zeros as stored but not yet rounded. ValueError if they cannot be."""
        if not isinstance(matrix, Coded):
            raise ValueError("not integers")
        codes, levels = matrix.codes, 1 << self.bits
        scale, zero = matrix.regrouped(self.group)
        zero = np.zeros((1, 1), np.float32) if zero is None else zero
        if codes.dtype == np.int8 and self.bits == 1:  # -1 and 1
            fits = np.array_equal(np.abs(codes), np.ones_like(codes))
            codes, scale, zero = codes > 0, 2 * scale, zero / 2 + np.float32(0.5)
        elif codes.dtype == np.int8:
            fits = codes.min() >= -levels // 2 and codes.max() < levels // 2
            codes, zero = codes.view(np.uint8) + np.uint8(levels // 2), zero + np.float32(levels // 2)
        else:
            fits = codes.max() < levels
        if not fits:
            raise ValueError(
                f"{self.KERNEL} holds {levels} levels, not codes {matrix.codes.min()}..{matrix.codes.max()}"
            )
        if not self.zeros:
            if (zero != zero.flat[0]).any():
                raise ValueError("zeros that differ")
            zero = zero.reshape(-1)[:1]
        return codes.astype(np.uint8), scale, np.broadcast_to(zero, scale.shape) if self.zeros else zero

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of a matrix: integers as they are, floats rounded to the nearest of the grid's steps.

        ValueError for integers that the format cannot hold.
        """
        rows, cols = matrix.shape
        parts: dict[str, np.ndarray] = {name: np.zeros(s, t) for name, (t, s) in self.layout(rows, cols).items()}
        for begin in range(0, rows, AT_ONCE):  # a few at a time: a matrix can be large
            some = matrix[begin : begin + AT_ONCE]
            codes, scale, zero = self._fit(some if isinstance(some, Coded) else self._round(to_float32(some)))
            blocks = slice(begin // ROWS, begin // ROWS - (-len(codes) // ROWS))
            parts["data"][blocks] = self.pack_codes(codes)
            parts["scale"][blocks] = by_block(scale)
            if self.zeros:
                parts["zero"][blocks] = by_block(zero)
            else:
                if begin and parts["zero"][0] != zero[0]:
                    raise ValueError("zeros that differ")
                parts["zero"][:] = zero
        if not all(np.isfinite(parts[name]).all() for name in ("scale", "zero")):
            raise ValueError("scales beyond float16's range")
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

    def pack_codes(self, codes: np.ndarray) -> np.ndarray:
        """The data of codes uint8 [rows, cols]: uint8 [blocks, chunks * bits * 64]."""
        rows, cols = codes.shape
        blocks, chunks = -(-rows // ROWS), -(-cols // self.chunk)
        if (rows, cols) != (blocks * ROWS, chunks * self.chunk) or not codes.flags.c_contiguous:
            padded = np.zeros((blocks * ROWS, chunks * self.chunk), np.uint8)
            padded[:rows, :cols] = codes
            codes = padded
        steps = codes.view(np.uint32).reshape(
            blocks, ROWS, chunks, -1
        )  # of four columns: fields do not leave their byte
        data = np.empty((blocks, chunks, self.bits * self.chunk // 32, ROWS), np.uint32)
        for width, shift in self.planes:
            first, count = shift * self.chunk // 32, width * self.chunk // 32
            data[:, :, first : first + count] = _pack_plane(steps >> np.uint32(shift), width)
        return data.view(np.uint8).reshape(blocks, -1)

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


def _pack_plane(steps: np.ndarray, width: int) -> np.ndarray:
    """The lowest bits of uint32 [blocks, 16, chunks, steps]: uint32 [blocks, chunks, width * steps / 8, 16]."""
    blocks, rows, chunks, count = steps.shape
    fields = steps.reshape(blocks, rows, chunks, width * count // 8, 8 // width)
    mask = np.uint32(0x01010101 * ((1 << width) - 1))
    packed = fields[..., 0] & mask
    for i in range(1, 8 // width):
        packed |= (fields[..., i] & mask) << np.uint32(width * i)
    return packed.transpose(0, 2, 3, 1)


def by_block(grid: np.ndarray) -> np.ndarray:
    """[rows, groups] to [blocks, groups * 16]"""
    rows, groups = grid.shape
    padded = np.zeros((-(-rows // ROWS) * ROWS, groups), np.float32)
    padded[:rows] = grid
    return padded.reshape(-1, ROWS, groups).swapaxes(1, 2).reshape(-1, groups * ROWS)


def by_row(grid: np.ndarray, rows: int) -> np.ndarray:
    """[blocks, groups * 16] to float32 [rows, groups]"""
    groups = grid.shape[1] // ROWS
    return grid.reshape(-1, groups, ROWS).swapaxes(1, 2).reshape(-1, groups)[:rows].astype(np.float32)


def _stored(scale: np.ndarray) -> np.ndarray:
    """Scales as they will be stored, so that codes are chosen for those."""
    return scale.astype(np.float16).astype(np.float32) if scale.shape[1] > 1 else scale


def _nonzero(scale: np.ndarray) -> np.ndarray:
    return np.where(scale == 0, np.float32(1), scale)
