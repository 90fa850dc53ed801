"""Round to nearest on uniform grids whose scales, and zeros if they have any, leave the least squared error found.

A grid that reaches the group's largest value wastes its steps on it. So grids of several reaches are tried. The one
whose codes leave the least is moved to the least squares for these codes and rounded to a few times: Lloyd's iteration
(1982) on evenly spaced levels. Everything is a group's own; nothing looks at the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from lutra.runtime.formats import Coded, Matrix
from lutra.runtime.formats._uniform import Uniform
from lutra.runtime.threads import in_pieces
from lutra.tools.loops import compiled, spans

REACHES = np.linspace(0.4, 1.0, 13, dtype=np.float32)  # shares of the range that the first grids reach
ROUNDS = 5
AT_ONCE = 4096  # groups worked on together: enough for what every call of numpy costs, few enough for a cache
LEAST = np.float32(1e-30)  # a smaller scale is as good as 0


def fits(codec: Any) -> bool:
    """Uniform grids of 2 bits and more; with one, the mean magnitude that ``pack`` takes is the best scale."""
    return isinstance(codec, Uniform)


def quantize(values: np.ndarray, codec: Uniform) -> Matrix:
    """Coded, with scales and zeros as the format stores them; the floats themselves for one bit."""
    if codec.bits == 1:
        return values
    rows, cols = values.shape
    group = codec.group or cols
    groups = -(-cols // group)
    codes = np.empty(values.shape, np.uint8)
    scale, zero = (np.empty((rows, groups), np.float32) for _ in range(2))

    def piece(some: slice) -> None:
        for begin, end, size in spans(cols, group):
            part = values[some, begin:end].reshape(-1, size)
            s, z = fit(part, codec.bits, codec.zeros, halves=groups > 1)
            own = slice(begin // group, -(-end // group))
            codes[some, begin:end] = nearest(part, s, z, codec.bits).reshape(-1, end - begin)
            scale[some, own], zero[some, own] = (grid.reshape(-1, own.stop - own.start) for grid in (s, z))

    in_pieces(piece, rows, max(1, AT_ONCE // groups))
    return Coded(codes, scale, zero, codec.group)


def nearest(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """The codes of the grid points nearest to float32 [n, group]: float32 of that shape. scale, zero: float32 [n]."""
    codes = values * inverse(scale)[:, None]
    codes += zero[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, (1 << bits) - 1, out=codes)


def fit(values: np.ndarray, bits: int, zeros: bool, *, halves: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A scale and a zero for every row of float32 [n, group]: float32 [n] each.

    zeros: whether each may have a zero of its own; else it is the middle of the codes. halves: whether scales are to
    be stored as float16, as zeros always are.
    """
    columns = np.ascontiguousarray(values.T)
    total = columns.sum(axis=0, dtype=np.float64)

    def measured(s: np.ndarray, z: np.ndarray) -> _Grid:
        s, z = _stored(s, halves), _stored(z)
        sums = _measured(columns, s, z, inverse(s), np.float32((1 << bits) - 1))
        return _Grid(s, z, sums[0], *_least_squares(s, z, sums, total, len(columns), zeros))

    best = None
    for s, z in _first_grids(columns, bits, zeros):
        grid = measured(s, z)
        best = best.or_else(grid, grid.promised < best.promised) if best else grid
    assert best is not None
    for _ in range(ROUNDS):
        grid = measured(best.better_scale, best.better_zero)
        best = best.or_else(grid, grid.error < best.error)
    return best.scale, best.zero


class _Grid(NamedTuple):
    """A grid for every group, its squared error, and the grid that fits its codes best, with the error of that."""

    scale: np.ndarray
    zero: np.ndarray
    error: np.ndarray
    better_scale: np.ndarray
    better_zero: np.ndarray
    promised: np.ndarray

    def or_else(self, other: _Grid, where: np.ndarray) -> _Grid:
        """The other, of the groups where that is so."""
        return _Grid(*(np.where(where, theirs, own) for own, theirs in zip(self, other, strict=True)))


def _measured_plain(
    columns: np.ndarray, scale: np.ndarray, zero: np.ndarray, inverse: np.ndarray, top: np.float32
) -> np.ndarray:
    """Error, steps, squares and products of float32 [group, n] on a grid for each of n: float32 [4, n]."""
    sums = np.zeros((4, columns.shape[1]), np.float32)
    step, term = np.empty((2, columns.shape[1]), np.float32)
    for x in columns:
        np.multiply(x, inverse, out=step)
        np.add(step, zero, out=step)
        np.rint(step, out=step)
        np.maximum(step, np.float32(0), out=step)
        np.minimum(step, top, out=step)
        np.subtract(step, zero, out=step)
        np.multiply(step, scale, out=term)
        np.subtract(x, term, out=term)
        np.multiply(term, term, out=term)
        sums[0] += term
        sums[1] += step
        np.multiply(step, step, out=term)
        sums[2] += term
        np.multiply(step, x, out=term)
        sums[3] += term
    return sums


@compiled(_measured_plain)
def _measured(columns: Any, scale: Any, zero: Any, inverse: Any, top: Any) -> Any:
    group, n = columns.shape
    sums = np.zeros((4, n), np.float32)
    error, steps, squares, products = sums[0], sums[1], sums[2], sums[3]
    for k in range(group):
        for i in range(n):
            x = columns[k, i]
            step = min(max(np.rint(x * inverse[i] + zero[i]), np.float32(0)), top) - zero[i]
            left = x - step * scale[i]
            error[i] += left * left
            steps[i] += step
            squares[i] += step * step
            products[i] += step * x
    return sums


def _first_grids(columns: np.ndarray, bits: int, zeros: bool) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Grids over a share of the values' range; or around a zero, to a share of the value farthest out."""
    levels = 1 << bits
    low, high = columns.min(axis=0), columns.max(axis=0)
    if zeros:
        flat = low == high  # all values alike: one step from a zero of -1
        for reach in REACHES:
            s = np.where(flat, low, reach * (high - low) / np.float32(levels - 1))
            first = (low + high) / 2 - reach * (high - low) / 2
            yield s, np.where(flat, -1, -first * inverse(s)).astype(np.float32)
        return
    middle = np.full(len(low), levels // 2, np.float32)
    end = np.where(high > -low, high, low)
    for reach in REACHES:  # the grid has one step more below its zero: on one side of it, or on the other
        yield reach * end / np.float32(-levels // 2), middle
        yield reach * end / np.float32(levels // 2 - 1), middle


def _least_squares(
    scale: np.ndarray,
    zero: np.ndarray,
    sums: np.ndarray,
    total: np.ndarray,
    group: int,
    zeros: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scale, and the zero if it is free, that fit the codes of a grid best, and the error that is left.

    sums: what was measured. total: the values' sums.
    """
    error, steps, squares, products = sums.astype(np.float64)
    left, gain = total - scale * steps, np.float64(0)
    if zeros:
        squares, products = squares - steps * steps / group, products - steps * total / group
        gain = left * left / group
    best = products / np.where(squares > 0, squares, 1)
    known = (squares > 0) & (np.abs(best) > LEAST)
    best = np.where(known, best, scale)
    promised = error - gain - squares * (best - scale) ** 2
    moved = zero + (steps - total / np.where(known, best, 1)) / group if zeros else zero
    return best.astype(np.float32), np.where(known, moved, zero).astype(np.float32), promised


def inverse(scale: np.ndarray) -> np.ndarray:
    """What values are multiplied with: 1 / scale, or 0."""
    known = np.abs(scale) > LEAST
    return np.where(known, np.float32(1) / np.where(known, scale, np.float32(1)), np.float32(0))


def _stored(x: np.ndarray, halves: bool = True) -> np.ndarray:
    return x.clip(-65504, 65504).astype(np.float16).astype(np.float32) if halves else x
