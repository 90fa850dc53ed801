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
from lutra.runtime.threads import in_pieces
from lutra.tools.loops import compiled, compiler_bytes, spans

ROUNDS = 15
AT_ONCE = 2048  # groups worked on together


def fits(codec: Any) -> bool:
    """Sums of binary planes; those of 0 and 1 if they are two."""
    return isinstance(codec, BinaryPlanes) and (codec.zero == 0.5 or codec.planes == 2)


def memory(rows: int, cols: int, codec: BinaryPlanes) -> int:
    """The values, and a byte for every bit."""
    return (4 + codec.planes) * rows * cols + compiler_bytes()


def quantize(values: np.ndarray, codec: BinaryPlanes) -> Planes:
    """Planes, with scales and offsets as the format stores them."""
    (rows, cols), group = values.shape, codec.ACT_GROUP
    groups = -(-cols // group)
    bits = np.empty((codec.planes, rows, cols), np.uint8)
    scale = np.empty((codec.planes, rows, groups), np.float32)
    offset = np.zeros((rows, groups), np.float32)

    def piece(some: slice) -> None:
        for begin, end, size in spans(cols, group):
            part = values[some, begin:end].reshape(-1, size)
            found, s, o = solve(part, codec.planes, codec.zero, codec.offsets)
            own = slice(begin // group, -(-end // group))
            for plane in range(codec.planes):
                bits[plane, some, begin:end] = found[:, :, plane].reshape(-1, end - begin)
                scale[plane, some, own] = s[:, plane].reshape(-1, own.stop - own.start)
            offset[some, own] = o.reshape(-1, own.stop - own.start)

    in_pieces(piece, rows, max(1, AT_ONCE // groups))
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
        _, counts, totals = _nearest(values, scale @ every.T + offset[:, None])
        scale, offset = _least_squares(counts, totals, every, scale, offset, offsets)
    scale, offset = _stored(scale), _stored(offset)
    codes = _nearest(values, scale @ every.T + offset[:, None])[0]
    return codes[..., None] >> np.arange(planes, dtype=np.uint8) & np.uint8(1), scale, offset


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


def _nearest(values: np.ndarray, sums: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of a row's sums [n, 2^planes] is nearest to each value: uint8 [n, group].

    With how many values each sum has, and what they add up to: float64 [n, 2^planes].
    """
    order = sums.argsort(axis=1)
    ordered = np.take_along_axis(sums, order, axis=1)
    return _taken(values, (ordered[:, 1:] + ordered[:, :-1]) / 2, order.astype(np.uint8))


def _taken_plain(
    values: np.ndarray, middles: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """By halving the sorted sums, a step per plane."""
    place, step = np.zeros(values.shape, np.intp), order.shape[1] // 2
    while step:
        place += step * (values >= np.take_along_axis(middles, place + (step - 1), axis=1))
        step //= 2
    codes = np.take_along_axis(order, place, axis=1)
    own = (codes + order.shape[1] * np.arange(len(codes))[:, None]).reshape(-1)
    counts = np.bincount(own, minlength=order.size).astype(np.float64)
    totals = np.bincount(own, values.reshape(-1), minlength=order.size)
    return codes, counts.reshape(order.shape), totals.reshape(order.shape)


@compiled(_taken_plain)
def _taken(values: Any, middles: Any, order: Any) -> Any:
    codes = np.empty(values.shape, np.uint8)
    counts, totals = np.zeros(order.shape, np.float64), np.zeros(order.shape, np.float64)
    for row in range(values.shape[0]):
        for i in range(values.shape[1]):
            place, step = 0, order.shape[1] // 2
            while step:
                place += step * (values[row, i] >= middles[row, place + step - 1])
                step //= 2
            code = order[row, place]
            codes[row, i] = code
            counts[row, code] += 1
            totals[row, code] += values[row, i]
    return codes, counts, totals


def _least_squares(
    counts: np.ndarray, totals: np.ndarray, every: np.ndarray, scale: np.ndarray, offset: np.ndarray, offsets: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The best scales, and offset if there is one, for these planes; planes that are alike share theirs."""
    known, before = every.astype(np.float64), scale.T.astype(np.float64)
    if offsets:
        known = np.concatenate([known, np.ones((len(known), 1))], axis=1)
        before = np.concatenate([before, offset[None]])
    pairs = (known[:, :, None] * known[:, None]).reshape(len(known), -1)
    square = (counts @ pairs).T.reshape(len(before), *before.shape)
    left = (totals @ known).T - (square * before).sum(
        axis=1
    )  # small steps from where they are stay where nothing tells
    ridge = 1e-6 * counts.sum(axis=1)
    moved = before + _solved(square + ridge * np.eye(len(before))[:, :, None], left)
    moved = np.ascontiguousarray(moved.T, np.float32)
    return (moved[:, :-1], moved[:, -1]) if offsets else (moved, offset)


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    """x with matrix x = right, for many small positive definite matrices: [k, k, n] and [k, n], used up."""
    for i in range(len(right)):
        for j in range(i + 1, len(right)):
            factor = matrix[j, i] / matrix[i, i]
            matrix[j] -= factor * matrix[i]
            right[j] -= factor * right[i]
    for i in reversed(range(len(right))):
        right[i] = (right[i] - (matrix[i, i + 1 :] * right[i + 1 :]).sum(axis=0)) / matrix[i, i]
    return right


def _stored(x: np.ndarray) -> np.ndarray:
    return x.clip(-65504, 65504).astype(np.float16).astype(np.float32)
