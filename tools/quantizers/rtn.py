"""Round to nearest on uniform grids whose scales, and zeros if they have any, leave the least squared error found.

A grid that reaches the group's largest value wastes its steps on it. So grids of several reaches are tried, and then
some around the best. The one whose codes leave the least is moved to the least squares for these codes and rounded to
a few times: Lloyd's iteration (1982) on evenly spaced levels. Everything is a group's own; nothing looks at the others.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lutra.runtime.formats import Coded, Matrix
from lutra.runtime.formats._uniform import Uniform
from lutra.runtime.threads import in_pieces
from lutra.tools.loops import compiled, spans

REACHES = np.linspace(0.4, 1.0, 5)  # shares of the range that the first grids reach
FINER = (-0.075, 0.075), (-0.0375, 0.0375)  # what is then tried beside the best of them
ROUNDS = {False: 2, True: 4}  # of Lloyd's iteration, by "zeros of their own": with these there is more to find
AT_ONCE = 1 << 19  # elements worked on together: few enough for a cache, but of
SOME = 256  # groups at least: enough for what every call of numpy costs
TILE = 512  # groups whose sums stay in the nearest cache
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

    in_pieces(piece, rows, max(1, AT_ONCE // cols, SOME // groups))
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
    top = np.float32((1 << bits) - 1)

    def sums(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        return _measured(columns, z, inverse(s), top).astype(np.float64)

    def measured(s: np.ndarray, z: np.ndarray) -> _Grid:
        s, z = _stored(s, halves), _stored(z)
        found = sums(s, z)
        kept = s * (2 * found[2] - s * found[1])
        return _Grid(s, z, kept, *_least_squares(s, z, found, total, len(columns), zeros))

    def promise(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        steps, squares, products = sums(s, z)
        if zeros:
            squares, products = squares - steps * steps / len(columns), products - steps * total / len(columns)
        return products * products / np.where(squares > 0, squares, 1)

    best = measured(*_searched(columns, bits, zeros, promise))
    for _ in range(ROUNDS[zeros]):
        grid = measured(best.better_scale, best.better_zero)
        best = best.or_else(grid, grid.kept > best.kept)
    return best.scale, best.zero


class _Grid(NamedTuple):
    """A grid for every group; what its codes take from the sum of squares; the grid that fits these codes best."""

    scale: np.ndarray
    zero: np.ndarray
    kept: np.ndarray
    better_scale: np.ndarray
    better_zero: np.ndarray

    def or_else(self, other: _Grid, where: np.ndarray) -> _Grid:
        """The other, of the groups where that is so."""
        return _Grid(*(np.where(where, theirs, own) for own, theirs in zip(self, other, strict=True)))


def _searched(
    columns: np.ndarray, bits: int, zeros: bool, promise: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """The scale and zero for every group that promise the most, of grids over a share of the values' range.

    Without zeros of their own: of grids around the middle code, to a share of the value farthest out.
    """
    levels = 1 << bits
    low, high = columns.min(axis=0), columns.max(axis=0)
    if zeros:
        flat, centre = low == high, (low + high) / 2
        whole = [(high - low) / np.float32(levels - 1)]
    else:  # there is one level more below zero: on one side of it, or on the other
        middle, farthest = np.full(len(low), levels // 2, np.float32), np.where(high > -low, high, low)
        whole = [farthest / np.float32(-levels // 2), farthest / np.float32(levels // 2 - 1)]

    def grid(share: np.ndarray, step: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        s = share * step
        if not zeros:
            return s, middle
        s = np.where(flat, low, s)  # all values alike: one step from a zero of -1
        return s, np.where(flat, np.float32(-1), np.float32((levels - 1) / 2) - centre * inverse(s))

    share, step, most = np.ones_like(low), whole[0], np.full(len(low), -np.inf)

    def compare(other_share: np.ndarray, other_step: np.ndarray) -> None:
        nonlocal share, step, most
        found = promise(*grid(other_share, other_step))
        better = found > most
        share, step, most = (
            np.where(better, theirs, own) for own, theirs in ((share, other_share), (step, other_step), (most, found))
        )

    for reach in REACHES:
        for other_step in whole:
            compare(np.full_like(low, reach), other_step)
    for beside in FINER:
        around = share
        for by in beside:
            compare(around + np.float32(by), step)
    return grid(share, step)


def _measured_plain(columns: np.ndarray, zero: np.ndarray, inverse: np.ndarray, top: np.float32) -> np.ndarray:
    """Steps, squares of them, and products of float32 [group, n] on a grid for each of n: float32 [3, n] sums."""
    sums = np.zeros((3, columns.shape[1]), np.float32)
    step, term = np.empty((2, columns.shape[1]), np.float32)
    for x in columns:
        np.multiply(x, inverse, out=step)
        np.add(step, zero, out=step)
        np.rint(step, out=step)
        np.maximum(step, np.float32(0), out=step)
        np.minimum(step, top, out=step)
        np.subtract(step, zero, out=step)
        sums[0] += step
        np.multiply(step, step, out=term)
        sums[1] += term
        np.multiply(step, x, out=term)
        sums[2] += term
    return sums


@compiled(_measured_plain)
def _measured(columns: Any, zero: Any, inverse: Any, top: Any) -> Any:
    group, n = columns.shape
    sums, step = np.zeros((3, n), np.float32), np.empty(min(n, TILE), np.float32)
    for first in range(0, n, TILE):
        last = min(first + TILE, n)
        own_zero, own_inverse = zero[first:last], inverse[first:last]
        steps, squares, products = sums[0, first:last], sums[1, first:last], sums[2, first:last]
        for k in range(group):  # in short loops over few arrays, each of which becomes vector instructions
            x = columns[k, first:last]
            for i in range(len(x)):
                step[i] = min(max(np.rint(x[i] * own_inverse[i] + own_zero[i]), np.float32(0)), top) - own_zero[i]
            for i in range(len(x)):
                steps[i] += step[i]
                squares[i] += step[i] * step[i]
            for i in range(len(x)):
                products[i] += step[i] * x[i]
    return sums


def _least_squares(
    scale: np.ndarray, zero: np.ndarray, sums: np.ndarray, total: np.ndarray, group: int, zeros: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The scale, and the zero if it is free, that fit the codes of a grid best.

    sums: what was measured. total: the values' sums.
    """
    steps, squares, products = sums
    if zeros:
        squares, products = squares - steps * steps / group, products - steps * total / group
    best = products / np.where(squares > 0, squares, 1)
    known = (squares > 0) & (np.abs(best) > LEAST)
    best = np.where(known, best, scale)
    moved = zero + (steps - total / np.where(known, best, 1)) / group if zeros else zero
    return best.astype(np.float32), np.where(known, moved, zero).astype(np.float32)


def inverse(scale: np.ndarray) -> np.ndarray:
    """What values are multiplied with: 1 / scale, or 0."""
    return np.divide(np.float32(1), scale, out=np.zeros_like(scale), where=np.abs(scale) > LEAST)


def _stored(x: np.ndarray, halves: bool = True) -> np.ndarray:
    return x.clip(-65504, 65504).astype(np.float16).astype(np.float32) if halves else x
