"""Dense checkpoints whose matrices are binary or ternary all the same: TriLM, BitCPM, Bonsai's unpacked releases.

A matrix is if every row, or every group of its columns, holds one magnitude and perhaps 0. A few rows tell those that
are not; of the others every weight is looked at, and what is kept is equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np

from lutra import native
from lutra.models.loaders.checkpoint import Entry, Mapped, Source
from lutra.models.loaders.grids import FLOATS, KEPT, array_of
from lutra.models.loaders.latent import blocks, look_at
from lutra.native import BINARY, MORE
from lutra.runtime.formats import Coded, is_finite

__all__ = ["find_few_levels"]

PROBED = 4  # rows
LEAST = min(KEPT)  # columns: fewer can have one magnitude by chance, and are not worth it
GROUPS = (0, *KEPT)  # from the smallest format to the largest; 0: a row


def find_few_levels(source: Source, files: Sequence[Mapped]) -> None:
    """Turn such matrices into entries of the smallest formats that hold them exactly."""

    def release() -> None:
        for file in files:
            file.release()

    likely = {}
    with ExitStack() as reading:
        for file in files:
            reading.enter_context(file.here_and_there())
        for name, entry in source.entries.items():
            likely[name] = _likely(entry)
            release()
    for name, groups in likely.items():
        found = _found(source.entries[name], groups)
        release()
        if found:
            source.entries[name] = _entry(source.entries[name], *found)
            source.kind = "few-level"


def _likely(entry: Entry) -> list[int]:
    """Those of GROUPS in which a few rows are BINARY or TERNARY."""
    if entry.dtype not in FLOATS or len(entry.shape) != 2 or entry.shape[1] < LEAST:
        return []
    rows = array_of(entry)[:: max(entry.shape[0] // PROBED, 1)]
    return [group for group in GROUPS if _level(rows, group) != MORE]


def _found(entry: Entry, groups: list[int]) -> tuple[int, int] | None:
    """In which of these groups, the first that will do, the matrix is BINARY or TERNARY, and which; None: in none."""
    levels = ((group, _level(array_of(entry), group)) for group in groups)
    return next((found for found in levels if found[1] != MORE), None)


def _level(weights: np.ndarray, group: int) -> int:
    """What all groups are: BINARY, TERNARY, or MORE; also MORE if formats do not keep their scales, or all are 0."""
    levels: list[int] = []
    some: list[bool] = []

    def look(_: slice, block: np.ndarray) -> None:
        scale, found = native.levels(block, group or block.shape[1])
        some.append(bool(scale.any()))
        levels.append(int(found.min()) if _is_kept(scale) else MORE)

    look_at(weights, look)
    return min(levels) if any(some) else MORE


def _is_kept(scale: np.ndarray) -> bool:
    """Whether formats hold these scales, and twice them, exactly: rows' in float32, groups' in float16."""
    with np.errstate(over="ignore"):
        twice = 2 * scale if scale.shape[1] == 1 else (2 * scale).astype(np.float16).astype(np.float32)
        least = scale if scale.shape[1] == 1 else scale.astype(np.float16).astype(np.float32)
    return is_finite(twice) and np.array_equal(least, scale)


def _entry(entry: Entry, group: int, level: int) -> Entry:
    def by_rows() -> Callable[[int, int], Coded]:
        weights = entry.read()

        def read(begin: int, end: int) -> Coded:
            codes = np.empty((end - begin, entry.shape[1]), np.int8)
            scales = []
            for rows, block in blocks(weights, begin, end):
                codes[rows] = native.signs(block) | (level == BINARY)  # a group of nothing but 0 is 1 times 0
                scales.append(native.levels(block, group or entry.shape[1])[0])
            return Coded(codes, np.concatenate(scales), None, group)

        return read

    dtype = f"{'b1' if level == BINARY else 'q2'}{f'g{group}' if group else ''}"
    return Entry(dtype, entry.shape, lambda: by_rows()(0, entry.shape[0]), by_rows)
