"""rows: matrices one above the other, each in a format of its own: for those that no single format can hold.

Q, k and v of different bit widths, or LittleBit factors of different ranks, are one weight to a model: made for each
as it is needed, so no variant is typical. rows-2560:q4g32+640:q6g64 is 2560 rows in q4g32 above 640 in q6g64.

    <index>.<part>   a matrix's parts, in its own format
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import Matrix, Packed, Stacked, codec

TYPICAL = None
MOST = 7  # matrices


@dataclass(frozen=True)
class Rows:
    """One format of the family. each: (rows, format) of every matrix, from the top."""

    each: tuple[tuple[int, str], ...]
    KERNEL: str = ""
    ACT_GROUP: int | None = None

    def layout(self, rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The parts of a [rows, cols] matrix. CorruptModelError if these are other rows: a file may name them wrong."""
        if sum(own for own, _ in self.each) != rows:
            raise CorruptModelError(f"{name_of(self.each):.80} does not make {rows} rows")
        return {
            f"{i}.{part}": what
            for i, (own, format) in enumerate(self.each)
            for part, what in codec(format).layout(own, cols).items()
        }

    def accepts(self, matrix: object) -> bool:
        """Whether these are such matrices, and every one's format holds it exactly."""
        if not isinstance(matrix, Stacked) or not self._fits(matrix):
            return False
        return all(codec(format).accepts(m) for (_, format), m in zip(self.each, matrix.matrices, strict=True))

    def _fits(self, matrix: Stacked) -> bool:
        return [m.shape[0] for m in matrix.matrices] == [own for own, _ in self.each]

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of such matrices; ValueError for any other."""
        if not isinstance(matrix, Stacked) or not self._fits(matrix):
            raise ValueError("not the matrices that this format stores")
        return {
            f"{i}.{part}": array
            for i, ((_, format), m) in enumerate(zip(self.each, matrix.matrices, strict=True))
            for part, array in codec(format).pack(m).items()
        }

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Stacked:
        """The matrices these parts store."""
        return Stacked(tuple(packed.matrix for packed in self._each(cols, parts)))

    def stack(self, packed: Packed) -> list[Packed]:
        """Each matrix by itself."""
        return self._each(packed.shape[1], packed.parts)

    def _each(self, cols: int, parts: dict[str, np.ndarray]) -> list[Packed]:
        return [
            Packed(format, (own, cols), {part: parts[f"{i}.{part}"] for part in codec(format).layout(own, cols)})
            for i, (own, format) in enumerate(self.each)
        ]


def name_of(each: Sequence[tuple[int, str]]) -> str:
    """The format of matrices of so many rows each, in these formats."""
    return "rows-" + "+".join(f"{rows}:{format}" for rows, format in each)


def variant(suffix: str) -> Rows | None:
    """The format rows + suffix. It holds no rows of rows, and as many matrices as ops.concat takes."""
    pairs = [each.partition(":") for each in suffix.removeprefix("-").split("+")]
    if not suffix.startswith("-") or len(pairs) > MOST:
        return None
    if not all(re.fullmatch(r"[1-9]\d{0,9}", rows) and format[:4] not in ("", "rows") for rows, _, format in pairs):
        return None
    return Rows(tuple((int(rows), format) for rows, _, format in pairs))
