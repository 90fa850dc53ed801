"""Round to nearest on uniform grids whose scales, and zeros if they have any, leave the least squared error found.

A grid that reaches the group's largest value wastes its steps on it. So grids of several reaches are tried, each is
moved to the least squares for the codes it gives, and the best is moved and rounded to a few times more: Lloyd's
iteration (1982) on evenly spaced levels. Everything is a group's own; nothing looks at the others.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Coded, Matrix
from lutra.runtime.formats._uniform import Uniform

REACHES = np.linspace(0.4, 1.0, 13, dtype=np.float32)  # shares of the range that the first grids reach
ROUNDS = 4
AT_ONCE = 1 << 19  # elements worked on together: few enough to stay in cache


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
    step = max(1, AT_ONCE // cols)
    for begin in range(0, rows, step):
        some = slice(begin, begin + step)
        for g in range(groups):
            columns = slice(g * group, min((g + 1) * group, cols))
            part = np.ascontiguousarray(values[some, columns])
            scale[some, g], zero[some, g] = fit(part, codec.bits, codec.zeros, halves=groups > 1)
            codes[some, columns] = nearest(part, scale[some, g], zero[some, g], codec.bits)
    return Coded(codes, scale, zero, codec.group)


def nearest(values: np.ndarray, scale: np.ndarray, zero: np.ndarray, bits: int) -> np.ndarray:
    """The codes of the grid points nearest to float32 [n, group]: float32 of that shape. scale, zero: float32 [n]."""
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.clip(np.rint(values / safe[:, None] + zero[:, None]), 0, (1 << bits) - 1)


def fit(values: np.ndarray, bits: int, zeros: bool, *, halves: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """A scale and a zero for every row of float32 [n, group]: float32 [n] each.

    zeros: whether each may have a zero of its own; else it is the middle of the codes. halves: whether scales are to
    be stored as float16, as zeros always are.
    """
    best = np.full(len(values), np.inf, np.float32)
    scale, zero = np.zeros_like(best), np.zeros_like(best)

    def consider(s: np.ndarray, z: np.ndarray) -> None:
        s, z = _stored(s, halves), _stored(z)
        error = ((values - (nearest(values, s, z, bits) - z[:, None]) * s[:, None]) ** 2).sum(axis=1)
        better = error < best
        best[better], scale[better], zero[better] = error[better], s[better], z[better]

    for s, z in _first_grids(values, bits, zeros):
        consider(s, z)
        consider(*_least_squares(values, nearest(values, s, z, bits), z, zeros))
    for _ in range(ROUNDS):
        consider(*_least_squares(values, nearest(values, scale, zero, bits), zero, zeros))
    return scale, zero


def _first_grids(values: np.ndarray, bits: int, zeros: bool) -> Any:
    """Grids over a share of the values' range; or around a zero, to a share of the value farthest out."""
    levels = 1 << bits
    if zeros:
        low, high = values.min(axis=1), values.max(axis=1)
        for reach in REACHES:
            s = reach * (high - low) / np.float32(levels - 1)
            first = (low + high) / 2 - reach * (high - low) / 2
            yield s, -first / np.where(s == 0, 1, s)
        return
    middle = np.full(len(values), levels // 2, np.float32)
    end = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)[:, 0]
    for reach in REACHES:  # the grid has one step more below its zero: on one side of it, or on the other
        yield reach * end / np.float32(-levels // 2), middle
        yield reach * end / np.float32(levels // 2 - 1), middle


def _least_squares(
    values: np.ndarray, codes: np.ndarray, zero: np.ndarray, zeros: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The scale, and the zero if it is free, that fit these codes best."""
    if not zeros:
        steps = codes - zero[:, None]
        square = (steps * steps).sum(axis=1)
        return (steps * values).sum(axis=1) / np.where(square == 0, 1, square), zero
    mean, middle = values.mean(axis=1), codes.mean(axis=1)
    steps = codes - middle[:, None]
    square = (steps * steps).sum(axis=1)
    scale = (steps * values).sum(axis=1) / np.where(square == 0, 1, square)
    known = scale != 0
    return np.where(known, scale, mean), np.where(known, middle - mean / np.where(known, scale, 1), codes[:, 0] - 1)


def _stored(x: np.ndarray, halves: bool = True) -> np.ndarray:
    return x.clip(-65504, 65504).astype(np.float16).astype(np.float32) if halves else x
