"""Matrices on uniform grids, as quantizers of weights leave them: the format of ours that holds one, and its entry.

What GPTQ, AWQ and compressed-tensors store differs in packing only; here are codes, scales, zeros and an order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import Coded, Factored, Matrix, is_finite, to_float32

__all__ = [
    "FLOATS",
    "KEPT",
    "WORDS",
    "Grid",
    "array_of",
    "group_of",
    "is_half",
    "kept_of",
    "order_of",
    "part",
    "stems_of",
    "take_parts",
]

KEPT = (128, 64, 32)  # groups of columns that our formats have
FLOATS = ("F16", "BF16", "F32")
WORDS = ("I32", "U32")


def stems_of(source: Source, ending: str) -> list[str]:
    """The modules that have a tensor with such a name: ".qweight"."""
    return [name.removesuffix(ending) for name in source.entries if name.endswith(ending)]


def take_parts(source: Source, stem: str, names: tuple[str, ...]) -> dict[str, Entry]:
    """Those of the parts that a matrix has, removed from the source."""
    found = {name: source.entries.pop(f"{stem}.{name}", None) for name in names}
    return {name: entry for name, entry in found.items() if entry is not None}


def part(parts: dict[str, Entry], stem: str, name: str, dtypes: tuple[str, ...], rank: int = 2) -> Entry:
    """One part of a matrix. Raises CorruptModelError where it is missing, of another type or rank, or empty."""
    if name not in parts:
        raise CorruptModelError(f"{stem!r:.80} has no {name}", "is the download complete?")
    entry = parts[name]
    if entry.dtype not in dtypes or len(entry.shape) != rank or 0 in entry.shape:
        raise CorruptModelError(
            f"{stem!r:.80}.{name} is {entry.dtype} {entry.shape}, not {rank} dimensions of {dtypes[0]}"
        )
    return entry


def array_of(entry: Entry) -> np.ndarray:
    """What a part's file holds."""
    array = entry.read()
    assert isinstance(array, np.ndarray)
    return array


def group_of(stem: str, cols: int, groups: int, said: object) -> int:
    """Columns that share a scale, 0 for all. said: what the configuration says, -1 for all of a row.

    One matrix can differ from the configuration: then its columns must fall into whole groups.
    """
    if groups == 1:
        return 0
    if type(said) is int and said > 0 and -(-cols // said) == groups:
        return said
    if cols % groups:
        raise CorruptModelError(
            f"{stem!r:.80} has {groups} groups of scales for {cols} columns in groups of {said!r:.20}"
        )
    return cols // groups


def order_of(stem: str, index: np.ndarray | None, cols: int, group: int) -> np.ndarray | None:
    """The columns group by group, or None if they lie so already. index: the group of each, or None.

    Raises CorruptModelError for groups of the wrong size.
    """
    if index is None:
        return None
    due = np.arange(cols) // group if group else np.zeros(cols, np.int64)
    if np.array_equal(index, due):
        return None
    order = np.argsort(index, kind="stable")
    if not np.array_equal(index[order], due):
        raise CorruptModelError(f"{stem!r:.80}: g_idx does not name {group or cols} of {cols} columns for every group")
    return order.astype(np.int32)


def kept_of(group: int) -> int:
    """The largest groups of our formats that lie within groups of so many columns; 0 if none do."""
    return next((n for n in KEPT if not group % n), 0)


def is_half(x: np.ndarray) -> bool:
    """Whether float16, as which formats keep what belongs to groups, holds these numbers."""
    with np.errstate(over="ignore"):
        return np.array_equal(x, x.astype(np.float16))


@dataclass(frozen=True)
class Grid:
    """A matrix W[o, i] = (code - zero) * scale of so many bits, by how its parts are read.

    group: columns that share a scale and a zero, 0: all. codes: gives uint8 [out, in], of some rows. scale: float32 or
    float16 [out, groups]. zero: the same. order: int32 [in], the columns as they come in groups, or None: as they are.
    half: whether the scales are known to be float16, and need not be read to tell the format.
    """

    stem: str
    bits: int
    shape: tuple[int, int]
    group: int
    codes: Callable[[slice], np.ndarray]
    scale: Callable[[], np.ndarray]
    zero: Callable[[], np.ndarray]
    order: np.ndarray | None = None
    half: bool = False

    def entry(self) -> Entry:
        """The matrix in the smallest format that holds it exactly, or else as float32: groups and scales decide."""
        kept, zero = kept_of(self.group) if self.group else 0, self.zero()
        if not is_finite(zero):
            raise CorruptModelError(f"{self.stem!r:.80} has zeros that are not finite numbers")
        if (self.group and not (kept and (self.half or is_half(self._scale())))) or not is_half(zero):
            return Entry("F32", self.shape, lambda: to_float32(self._matrix(self.group)))
        middle = (zero == 1 << self.bits - 1).all() and (kept or self.bits < 8)  # q8 is another format
        base = "b1" if self.bits == 1 else f"q{self.bits}"
        format = f"{base}{f'g{kept}' if kept else ''}{'' if middle else 'z'}"
        if self.order is not None:
            return Entry(f"ordered-{format}", self.shape, lambda: self._matrix(kept))
        return Entry(format, self.shape, lambda: self._matrix(kept), lambda: self._by_rows(kept))

    def _scale(self) -> np.ndarray:
        scale = self.scale()
        if not is_finite(scale):
            raise CorruptModelError(f"{self.stem!r:.80} has scales that are not finite numbers")
        return scale

    def _by_rows(self, kept: int) -> Callable[[int, int], Coded]:
        scale, zero = self._scale(), self.zero()

        def read(begin: int, end: int) -> Coded:
            rows = slice(begin, end)
            codes = self.codes(rows)
            if self.order is not None:
                codes = np.ascontiguousarray(codes[:, self.order])
            return Coded(codes, *Coded(codes, scale[rows], zero[rows], self.group).regrouped(kept), kept)

        return read

    def _matrix(self, kept: int) -> Matrix:
        matrix = self._by_rows(kept)(0, self.shape[0])
        return matrix if self.order is None else Factored((((self.order, matrix),),))
