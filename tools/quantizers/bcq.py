"""Binary-coded weights by alternation: the best scales for the bits, then the best bits for the scales.

Planes begin greedily, each the signs of what the planes before it leave (Guo et al. 2017); then the two steps
alternate (Xu et al. 2018): least squares for the scales, the nearest of all sums for the bits. DB-LLM's planes of 0
and 1 begin as 2-bit integers (Chen et al. 2024) and take the same steps.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lutra.runtime.formats import Planes
from lutra.runtime.formats._planes import BinaryPlanes

ROUNDS = 15
AT_ONCE = 1 << 17  # elements, times planes, worked on together


def fits(codec: Any) -> bool:
    """Sums of binary planes; those of 0 and 1 if they are two."""
    return isinstance(codec, BinaryPlanes) and (codec.zero == 0.5 or codec.planes == 2)


def quantize(values: np.ndarray, codec: BinaryPlanes) -> Planes:
    """Planes, with scales and offsets as the format stores them."""
    (rows, cols), group = values.shape, codec.ACT_GROUP
    groups = -(-cols // group)
    bits = np.empty((codec.planes, rows, cols), np.uint8)
    scale = np.empty((codec.planes, rows, groups), np.float32)
    offset = np.zeros((rows, groups), np.float32)
    step = max(1, AT_ONCE // group)
    for g in range(groups):
        columns = slice(g * group, min((g + 1) * group, cols))
        for begin in range(0, rows, step):
            some = slice(begin, begin + step)
            found, s, o = solve(values[some, columns], codec.planes, codec.zero, codec.offsets)
            bits[:, some, columns] = np.moveaxis(found, 2, 0)
            scale[:, some, g], offset[some, g] = s.T, o
    return Planes(bits, scale, group, offset if codec.offsets else None, codec.zero)


def solve(
    values: np.ndarray, planes: int, zero: float = 0.5, offsets: bool = False, rounds: int = ROUNDS
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every row of float32 [n, group] as planes: bits [n, group, planes], scale [n, planes], offset [n].

    Scales and offsets are float32 that float16 holds. rounds 0: greedily.
    """
    every = (np.arange(1 << planes)[:, None] >> np.arange(planes) & 1).astype(np.float32) - np.float32(zero)
    scale, offset = _begin(values, planes, zero, offsets)
    for _ in range(rounds):
        signs = every[_nearest(values, scale @ every.T + offset[:, None])]
        scale, offset = _least_squares(values, signs, scale, offset, offsets)
    scale, offset = _stored(scale), _stored(offset)
    found = _nearest(values, scale @ every.T + offset[:, None])
    return (found[..., None] >> np.arange(planes) & 1).astype(np.uint8), scale, offset


def _begin(values: np.ndarray, planes: int, zero: float, offsets: bool) -> tuple[np.ndarray, np.ndarray]:
    offset = values.mean(axis=1) if offsets else np.zeros(len(values), np.float32)
    if zero == 0:
        step = np.abs(values).max(axis=1) / 2
        return np.stack([2 * step, -step], axis=1), offset
    left, scale = values - offset[:, None], np.empty((len(values), planes), np.float32)
    for plane in range(planes):
        scale[:, plane] = 2 * np.abs(left).mean(axis=1)
        left = left - np.where(left < 0, -0.5, 0.5).astype(np.float32) * scale[:, plane, None]
    return scale, offset


def _nearest(values: np.ndarray, sums: np.ndarray) -> np.ndarray:
    """Which of a row's sums [n, 2^planes] is nearest to each value: by halving the sorted sums, a step per plane."""
    order = sums.argsort(axis=1)
    ordered = np.take_along_axis(sums, order, axis=1)
    middles = (ordered[:, 1:] + ordered[:, :-1]) / 2
    place, step = np.zeros(values.shape, np.intp), sums.shape[1] // 2
    while step:
        place += step * (values >= np.take_along_axis(middles, place + step - 1, axis=1))
        step //= 2
    return np.take_along_axis(order, place, axis=1)


def _least_squares(
    values: np.ndarray, signs: np.ndarray, scale: np.ndarray, offset: np.ndarray, offsets: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best scales, and offset if there is one, for these planes; planes that are alike share theirs."""
    known, before = signs.astype(np.float64), scale
    if offsets:
        known = np.concatenate([known, np.ones((*values.shape, 1))], axis=2)
        before = np.concatenate([scale, offset[:, None]], axis=1)
    left = values - (known @ before[..., None])[..., 0]  # small steps from where they are stay where nothing tells
    turned = known.swapaxes(1, 2)
    ridge = 1e-6 * values.shape[1] * np.eye(known.shape[2])
    moved = before + np.linalg.solve(turned @ known + ridge, turned @ left[..., None])[..., 0]
    moved = moved.astype(np.float32)
    return (moved[:, :-1], moved[:, -1]) if offsets else (moved, offset)


def _stored(x: np.ndarray) -> np.ndarray:
    return x.clip(-65504, 65504).astype(np.float16).astype(np.float32)
