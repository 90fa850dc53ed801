"""Formats made of others: a sum of chains of matrices, each with a scale or a place per column, or with neither.

<chain>.<link>.<part>   a matrix's parts, in its own format
<chain>.<link>.columns  float32 [columns], if it has such scales; int32, the columns of x in the order it meets them
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from lutra.runtime.formats import Factored, Matrix, Packed, codec


@dataclass(frozen=True)
class Link:
    """One matrix of a chain. scaled: whether it has a scale per column; ordered: whether it takes x's in an order."""

    format: str
    rows: int
    cols: int
    scaled: bool = False
    ordered: bool = False

    @property
    def columns(self) -> type | None:
        """The type of what comes with its columns, or None."""
        return np.int32 if self.ordered else np.float32 if self.scaled else None


@dataclass(frozen=True)
class Chained:
    """A format of the family. links(rows, cols): the chains that a matrix of that shape is made of."""

    links: Callable[[int, int], list[list[Link]]]
    KERNEL: str = ""
    ACT_GROUP: int | None = None

    def _each(self, rows: int, cols: int) -> Iterator[tuple[str, int, int, Link]]:
        for c, chain in enumerate(self.links(rows, cols)):
            for k, link in enumerate(chain):
                yield f"{c}.{k}", c, k, link

    def layout(self, rows: int, cols: int) -> dict[str, tuple[type, tuple[int, ...]]]:
        """The parts of a [rows, cols] matrix."""
        parts: dict[str, tuple[type, tuple[int, ...]]] = {}
        for name, _, _, link in self._each(rows, cols):
            if link.columns:
                parts[f"{name}.columns"] = (link.columns, (link.cols,))
            for part, what in codec(link.format).layout(link.rows, link.cols).items():
                parts[f"{name}.{part}"] = what
        return parts

    def accepts(self, matrix: object) -> bool:
        """Whether the matrix is such a product, and every link's format holds it exactly."""
        if not isinstance(matrix, Factored):
            return False
        rows, cols = matrix.shape
        due = self.links(rows, cols)
        if [len(chain) for chain in due] != [len(chain) for chain in matrix.chains]:
            return False
        found = ((link, *matrix.chains[c][k]) for _, c, k, link in self._each(rows, cols))
        return all(
            m.shape == (link.rows, link.cols) and _fits(columns, link) and codec(link.format).accepts(m)
            for link, columns, m in found
        )

    def pack(self, matrix: Matrix) -> dict[str, np.ndarray]:
        """The parts of such a product; ValueError for any other matrix."""
        if not self.accepts(matrix):
            raise ValueError("not the product of matrices that this format stores")
        assert isinstance(matrix, Factored)
        parts: dict[str, np.ndarray] = {}
        for name, c, k, link in self._each(*matrix.shape):
            columns, factor = matrix.chains[c][k]
            if columns is not None:
                parts[f"{name}.columns"] = columns
            for part, array in codec(link.format).pack(factor).items():
                parts[f"{name}.{part}"] = array
        return parts

    def unpack(self, rows: int, cols: int, parts: dict[str, np.ndarray]) -> Factored:
        """The matrix these parts store."""
        chains = self._chains(rows, cols, parts)
        return Factored(tuple(tuple((columns, link.matrix) for columns, link in chain) for chain in chains))

    def chains(self, packed: Packed) -> list[list[tuple[np.ndarray | None, Packed]]]:
        """The chains' links, each packed."""
        rows, cols = packed.shape
        return self._chains(rows, cols, packed.parts)

    def _chains(
        self, rows: int, cols: int, parts: dict[str, np.ndarray]
    ) -> list[list[tuple[np.ndarray | None, Packed]]]:
        found: list[list[tuple[np.ndarray | None, Packed]]] = [[] for _ in self.links(rows, cols)]
        for name, c, _, link in self._each(rows, cols):
            own = {part: parts[f"{name}.{part}"] for part in codec(link.format).layout(link.rows, link.cols)}
            found[c].append((parts.get(f"{name}.columns"), Packed(link.format, (link.rows, link.cols), own)))
        return found


def _fits(columns: np.ndarray | None, link: Link) -> bool:
    if columns is None or link.columns is None:
        return columns is link.columns
    return columns.dtype == link.columns and columns.shape == (link.cols,)
