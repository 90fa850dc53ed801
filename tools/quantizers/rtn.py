"""Round to nearest on uniform grids whose scales, and zeros if they have any, leave the least squared error found.

A grid that reaches the group's largest value wastes its steps on it. So grids of several reaches are tried, and then
some around the best. The one whose codes leave the least is moved to the least squares for these codes and rounded to
a few times: Lloyd's iteration (1982) on evenly spaced levels. Everything is a group's own; nothing looks at the others.

native/kernels/fit_grids.c does this work; ``fit_grids`` here says what it is, and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lutra.runtime.formats import Coded, Matrix
from lutra.runtime.formats._uniform import Uniform
from lutra.runtime.threads import in_pieces
from lutra.tools.loops import on_rows, spans

BY_ROWS = True
REACHES = np.linspace(0.4, 1.0, 5)  # shares of the range that the first grids reach
FINER = (-0.075, 0.075), (-0.0375, 0.0375)  # what is then tried beside the best of them
ROUNDS = {False: 2, True: 4}  # of Lloyd's iteration, by "zeros of their own": with these there is more to find
AT_ONCE = 1 << 18  # elements worked on together
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
            own = slice(begin // group, -(-end // group))
            found, s, z = _fitted(values[some, begin:end].reshape(-1, size), codec.bits, codec.zeros, groups > 1)
            codes[some, begin:end] = found.reshape(-1, end - begin)
            scale[some, own], zero[some, own] = (grid.reshape(-1, own.stop - own.start) for grid in (s, z))

    in_pieces(piece, rows, max(1, AT_ONCE // cols))
    return Coded(codes, scale, zero, codec.group)


def fit(values: np.ndarray, bits: int, zeros: bool, *, halves: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A scale and a zero for every row of float32 [n, group]: float32 [n] each. As ``fit_grids``, by its kernel."""
    _, scale, zero = _fitted(values, bits, zeros, halves)
    return scale[:, 0], zero[:, 0]


def _fitted(values: np.ndarray, bits: int, zeros: bool, halves: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    codes = np.empty(values.shape, np.uint8)
    scale, zero = (np.empty((len(values), 1), np.float32) for _ in range(2))
    on_rows("fit_grids", [codes, scale, zero], [values], [bits, zeros, halves])
    return codes, scale, zero


def nearest(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """The codes of the grid points nearest to float32 [n, group]: float32 of that shape. scale, zero: float32 [n]."""
    codes = values * inverse(scale)[:, None]
    codes += zero[:, None]
    np.rint(codes, out=codes)
    return np.clip(codes, 0, (1 << bits) - 1, out=codes)


def fit_grids(x: np.ndarray, *, bits: int, zeros: bool, halves: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every row of float32 [n, group] on a grid of its own: codes uint8 [n, group], scale and zero float32 [n, 1].

    zeros: whether each may have a zero of its own; else it is the middle of the codes. halves: whether scales are to
    be stored as float16, as zeros always are.
    """
    columns = np.ascontiguousarray(x.T)
    total, top = np.zeros(len(x)), np.float32((1 << bits) - 1)
    for column in columns:
        total += column

    def measured(s: np.ndarray, z: np.ndarray) -> _Grid:
        s, z = _stored(s, halves), _stored(z)
        found = _measured(columns, s, z, top)
        kept = s * (2 * found[2] - s * found[1])
        return _Grid(s, z, kept, *_least_squares(s, z, found, total, len(columns), zeros))

    def promise(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        steps, squares, products = _measured(columns, s, z, top)
        if zeros:
            squares, products = squares - steps * steps / len(columns), products - steps * total / len(columns)
        return products * products / np.where(squares > 0, squares, 1)

    best = measured(*_searched(columns, bits, zeros, promise))
    for _ in range(ROUNDS[zeros]):
        grid = measured(best.better_scale, best.better_zero)
        best = best.or_else(grid, grid.kept > best.kept)
    codes = nearest(x, best.scale, best.zero, bits).astype(np.uint8)
    return codes, best.scale[:, None], best.zero[:, None]


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
    low, high = columns.min(axis=0) + np.float32(0), columns.max(axis=0) + np.float32(0)  # no zero has a sign
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


def _measured(columns: np.ndarray, scale: np.ndarray, zero: np.ndarray, top: np.float32) -> np.ndarray:
    """Steps, squares of them, and products of float32 [group, n] on a grid for each of n: float64 [3, n]."""
    sums, by = np.zeros((3, columns.shape[1]), np.float32), inverse(scale)
    for x in columns:
        step = np.minimum(np.maximum(np.rint(x * by + zero), np.float32(0)), top) - zero
        sums += (step, step * step, step * x)
    return sums.astype(np.float64)  # what is done with them may cancel


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
