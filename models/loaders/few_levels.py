"""Dense checkpoints whose matrices are binary or ternary all the same: TriLM, BitCPM, Bonsai's unpacked releases.

A matrix is if every row, or every group of its columns, holds one magnitude and perhaps 0. A few rows tell those that
are not; of the others every weight is looked at, and what is kept is equal to it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, KEPT
from lutra.runtime.formats import Coded, Matrix, to_float32

__all__ = ["find_few_levels"]

PROBED = 4  # rows
LEAST = 32  # columns: fewer can have one magnitude by chance, and are not worth it
BLOCK = 1 << 20  # elements turned to float32 at a time
GROUPS = (0, *KEPT)  # from the smallest format to the largest; 0: a row


def find_few_levels(source: Source, release: Callable[[], None]) -> None:
    """Turn such matrices into entries of the smallest formats that hold them exactly.

    release() gives back the memory that what was read takes up.
    """
    for name, entry in source.entries.items():
        if entry.dtype not in FLOATS or len(entry.shape) != 2 or entry.shape[1] < LEAST:
            continue
        found = _few(_sample(entry)) and _few(entry.read())
        release()
        if found:
            source.entries[name] = _entry(entry, *found)
            source.kind = "few-level"


def _sample(entry: Entry) -> Matrix:
    rows = entry.shape[0]
    return entry.read()[:: max(rows // PROBED, 1)]


def _few(weights: Matrix) -> tuple[bool, int] | None:
    """Whether the matrix is binary, rather than ternary, and in which groups; None if it is neither, or 0."""
    binary, ternary, some = set(GROUPS), set(GROUPS), False
    for _, block in _blocks(weights):
        for group in ternary.copy():
            scale, ones = _magnitudes(block, group)
            if not ones.all():
                binary.discard(group)
            if not (ones | (_grouped(block, group) == 0)).all() or not _held(scale):
                ternary.discard(group)
        binary &= ternary
        some = some or bool(block.any())
        if not ternary:
            return None
    if not some:
        return None
    return bool(binary), next(group for group in GROUPS if group in (binary or ternary))


def _grouped(block: np.ndarray, group: int) -> np.ndarray:
    """float32 [rows, groups, columns of a group]; the last is filled with its last column."""
    rows, cols = block.shape
    filled = np.pad(block, [(0, 0), (0, -cols % group)], mode="edge") if group and cols % group else block
    return filled.reshape(rows, -1, group or cols)


def _magnitudes(block: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Every group's largest magnitude, and whether each weight has it."""
    magnitudes = np.abs(_grouped(block, group))
    scale = magnitudes.max(axis=2)
    return scale, magnitudes == scale[:, :, None]


def _held(scale: np.ndarray) -> bool:
    """Whether formats keep these scales, and twice them, exactly: rows' in float32, groups' in float16."""
    with np.errstate(over="ignore"):
        twice = 2 * scale if scale.shape[1] == 1 else (2 * scale).astype(np.float16).astype(np.float32)
        least = scale if scale.shape[1] == 1 else scale.astype(np.float16).astype(np.float32)
    return bool(np.isfinite(twice).all()) and np.array_equal(least, scale)


def _entry(entry: Entry, binary: bool, group: int) -> Entry:
    def read() -> Coded:
        weights = entry.read()
        codes = np.empty(entry.shape, np.int8)
        scales = []
        for rows, block in _blocks(weights):
            codes[rows] = np.where(block < 0, -1, 1) if binary else np.sign(block)
            scales.append(_magnitudes(block, group)[0])
        return Coded(codes, np.concatenate(scales), None, group)

    return Entry(f"{'b1' if binary else 'q2'}{f'g{group}' if group else ''}", entry.shape, read)


def _blocks(weights: Matrix) -> Iterator[tuple[slice, np.ndarray]]:
    step = max(1, BLOCK // weights.shape[1])
    for begin in range(0, weights.shape[0], step):
        rows = slice(begin, begin + step)
        yield rows, to_float32(weights[rows])
