"""A session's memory, as native/kernels/kv_cache.h lays it out, and the types that keys and values are stored in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from lutra.runtime import memory

__all__ = ["KV_TYPES", "SPLIT_ROWS", "Cache", "KVType", "Memory", "memory_bytes", "position_bytes"]

LANES = 16  # positions in a vector of keys
GROUP = 32  # columns that share a scale
SPAN = 512  # positions that attention takes as one
SPLIT_ROWS = 8  # rows of a step that it takes span by span
VERSION = 3  # of the rows that read() gives

f32 = np.float32


@dataclass(frozen=True)
class KVType:
    """How a number of the cache is stored: as a float of ``dtype``, or as an integer of that many bits with a scale.

    A row is one head's keys or values of one position: its codes, then its scales.
    """

    dtype: Any
    bits: int = 0  # 0: a float

    @property
    def zero(self) -> int:
        """By which stored integers are too large."""
        return 1 << self.bits - 1 if self.bits else 0

    @property
    def steps(self) -> int:
        """Columns of keys, or positions of values, that lie together."""
        return 4 if self.bits else 1

    def columns(self, head_dim: int) -> int:
        """Numbers in a row: head_dim, rounded up."""
        step = GROUP if self.bits else 16
        return -(-head_dim // step) * step

    def scales(self, head_dim: int) -> int:
        """Scales in a row."""
        return -(-head_dim // GROUP) if self.bits else 0

    def codes(self, head_dim: int) -> int:
        """Elements of dtype in a row."""
        return self.columns(head_dim) // (2 if self.bits == 4 else 1)

    def row_bytes(self, head_dim: int) -> int:
        """Bytes of a row."""
        return self.codes(head_dim) * np.dtype(self.dtype).itemsize + 2 * self.scales(head_dim)

    def encode(self, x: np.ndarray) -> np.ndarray:
        """Rows of numbers, float32 [..., head_dim], as bytes: uint8 [..., row_bytes]."""
        head_dim = x.shape[-1]
        columns = self.columns(head_dim)
        x = np.concatenate([x, np.zeros((*x.shape[:-1], columns - head_dim), x.dtype)], axis=-1).astype(f32)
        if not self.bits:
            return np.ascontiguousarray(x.astype(self.dtype)).view(np.uint8)
        x = x.reshape(*x.shape[:-1], -1, GROUP)
        first = np.take_along_axis(x, np.abs(x).argmax(axis=-1, keepdims=True), axis=-1)  # the largest, with its sign
        scale = first / f32(-8) if self.bits == 4 else np.abs(first) / f32(127)
        half = scale.clip(-65504, 65504).astype(np.float16)
        known = half.astype(f32)
        inverse = np.divide(f32(1), known, out=np.zeros_like(known), where=known != 0)
        least, most = (-8, 7) if self.bits == 4 else (-127, 127)
        codes = (np.rint(x * inverse).clip(least, most) + self.zero).astype(np.uint8)
        if self.bits == 4:
            codes = codes[..., :16] | codes[..., 16:] << 4
        codes = codes.reshape(*codes.shape[:-2], -1)
        scales = half[..., 0]
        return np.concatenate([np.ascontiguousarray(part).view(np.uint8) for part in (codes, scales)], axis=-1)

    def decode(self, rows: np.ndarray, head_dim: int) -> np.ndarray:
        """The numbers that rows stand for, [..., head_dim]: of dtype, or float32."""
        end = self.codes(head_dim) * np.dtype(self.dtype).itemsize
        codes = np.ascontiguousarray(rows[..., :end]).view(self.dtype)
        if not self.bits:
            return codes[..., :head_dim]
        scale = np.ascontiguousarray(rows[..., end:]).view(np.float16).astype(f32)
        if self.bits == 4:
            codes = codes.reshape(*codes.shape[:-1], -1, 16)
            codes = np.concatenate([codes & 15, codes >> 4], axis=-1)
            codes = codes.reshape(*codes.shape[:-2], -1)
        return (codes[..., :head_dim].astype(f32) - f32(self.zero)) * scale.repeat(GROUP, axis=-1)[..., :head_dim]


KV_TYPES = {
    "f32": KVType(np.float32),
    "f16": KVType(np.float16),
    "q8": KVType(np.uint8, 8),
    "q4": KVType(np.uint8, 4),
}


Shape = tuple[int, int]  # a layer's: heads of keys and values, and columns of each


def position_bytes(kv_type: str, shapes: Sequence[Shape]) -> int:
    """Bytes that one token's keys and values take in layers of these shapes."""
    return sum(2 * kv_heads * KV_TYPES[kv_type].row_bytes(head_dim) for kv_heads, head_dim in shapes)


class Cache:
    """Keys and values of ``n_ctx`` positions for layers of these shapes.

    Pages are taken when they are first written: a long context costs nothing until it is used.

    memory: all keys and values, as kernels see them: uint8, layer by layer.
    work: what attention of so many heads lays aside during a step; zeros, once.
    """

    def __init__(self, kv_type: str, shapes: Sequence[Shape], heads: int, n_ctx: int):
        self.type = KV_TYPES[kv_type]
        blocks = -(-n_ctx // LANES)
        ends = accumulate((blocks * LANES * position_bytes(kv_type, [shape]) for shape in shapes), initial=0)
        bounds = list(pairwise(ends))
        self.memory = memory.zeros(bounds[-1][1])
        each = zip(bounds, shapes, strict=True)
        self._layers = [_Layer(self.type, self.memory[begin:end], *shape) for (begin, end), shape in each]
        pieces = heads * -(-n_ctx // SPAN) * (max(self.type.columns(head_dim) for _, head_dim in shapes) + 2)
        self.work = np.zeros(SPLIT_ROWS * (heads + pieces), np.float32)

    def read(self, n: int) -> np.ndarray:
        """The rows of the first n positions, a copy: uint8 [n, position_bytes], layer by layer, keys before values."""
        return np.concatenate(
            [layer.read(n).transpose(2, 0, 1, 3).reshape(n, layer.width) for layer in self._layers], 1
        )

    def write(self, rows: np.ndarray) -> None:
        """Fill the first positions from what read() gave."""
        begin = 0
        for layer in self._layers:
            some = rows[:, begin : begin + layer.width].reshape(len(rows), 2, layer.kv_heads, -1)
            layer.write(some.transpose(1, 2, 0, 3))
            begin += layer.width


class _Layer:
    """One layer's keys and values in its part of the memory, uint8 [bytes]. width: bytes of a position."""

    def __init__(self, t: KVType, part: np.ndarray, kv_heads: int, head_dim: int):
        self.kv_heads, self.width = kv_heads, 2 * kv_heads * t.row_bytes(head_dim)
        blocks = len(part) // self.width // LANES
        part = part.reshape(2, kv_heads, -1)
        # By position, whatever the order in memory: [kv_heads, blocks, 16 positions, codes or scales], where the last
        # two may each be two axes.
        codes, scales, steps = t.codes(head_dim), t.scales(head_dim), t.steps
        end = blocks * LANES * codes * np.dtype(t.dtype).itemsize
        keys, values = (part[i, :, :end].view(t.dtype) for i in (0, 1))
        lead = (kv_heads, blocks)
        self._keys = [_split(keys, *lead, codes // steps, LANES, steps).transpose(0, 1, 3, 2, 4)]
        self._values = [_split(values, *lead, LANES // steps, codes, steps).transpose(0, 1, 2, 4, 3)]
        if scales:
            for i, parts in enumerate((self._keys, self._values)):
                half = part[i, :, end:].view(np.float16)
                parts.append(_split(half, *lead, scales, LANES).transpose(0, 1, 3, 2))

    def read(self, n: int) -> np.ndarray:
        """Of the first n positions: uint8 [2, kv_heads, n, row_bytes]."""
        blocks = -(-n // LANES)
        both = []
        for parts in (self._keys, self._values):
            rows = np.concatenate([_rows(part[:, :blocks]).view(np.uint8) for part in parts], axis=-1)
            both.append(rows.reshape(self.kv_heads, blocks * LANES, rows.shape[-1])[:, :n])
        return np.stack(both)

    def write(self, rows: np.ndarray) -> None:
        """What read() gave."""
        n = rows.shape[2]
        for i, parts in enumerate((self._keys, self._values)):
            begin = 0
            for part in parts:
                for block in range(-(-n // LANES)):
                    whole = part[:, block]
                    filled = _rows(whole[:, None])[:, 0]
                    end = begin + filled.shape[-1] * filled.itemsize
                    some = rows[i, :, block * LANES : (block + 1) * LANES, begin:end]
                    filled[:, : some.shape[1]] = np.ascontiguousarray(some).view(part.dtype)
                    whole[...] = filled.reshape(whole.shape)
                begin = end


MOMENTS = 4  # that are remembered while a prompt is fed: now, what is kept, and both as they were when it began


def memory_bytes(floats: int) -> int:
    """Bytes that a Memory of so many floats takes."""
    return MOMENTS * 4 * floats


@dataclass(frozen=True, eq=False)
class _Moment:
    """What recurrent layers remember after so many tokens. Nothing is remembered at position 0."""

    position: int
    floats: np.ndarray | None = None


class Memory:
    """What recurrent layers remember of all tokens so far: ``size`` floats, however many tokens there were.

    Unlike a cache it has no part for each token, so it cannot be taken back to any of them, only to ``kept``: the
    moment before the last step of the last prompt. A step reads what ``now`` is and writes elsewhere; so one that fails
    has changed nothing, and begin() and undo() do the same for several.
    """

    def __init__(self, size: int):
        self.size = size
        self.now = self.kept = _Moment(0)
        self._began = (self.now, self.kept)
        self._arrays: list[np.ndarray] = []  # MOMENTS at most, made when they are first needed

    def begin(self) -> None:
        """Remember where undo() comes back to."""
        self._began = (self.now, self.kept)

    def undo(self) -> None:
        """Forget all steps since begin()."""
        self.now, self.kept = self._began

    def blank(self) -> np.ndarray:
        """Where the next step may write: float32 [size], not zeros. The same until advance()."""
        used = [moment.floats for moment in (self.now, self.kept, *self._began)]
        found = next((a for a in self._arrays if not any(a is b for b in used)), None)
        if found is None:
            found = memory.zeros(4 * self.size).view(f32)
            self._arrays.append(found)
        return found

    def advance(self, n: int) -> None:
        """A step of n tokens has written its blank()."""
        self.now = _Moment(self.now.position + n, self.blank())

    def keep(self) -> None:
        """Be able to come back to now, instead of to what was kept before."""
        self.kept = self.now

    def rewind(self, n: int) -> int:
        """Go back to the last moment of at most n tokens that is known; returns its position."""
        known = (moment for moment in (self.now, self.kept, _Moment(0)) if moment.position <= n)
        self.now = next(known)
        if self.kept.position > self.now.position:
            self.kept = self.now
        self.begin()
        return self.now.position

    def read(self) -> np.ndarray:
        """A copy of what is remembered now: float32 [size]."""
        return np.zeros(self.size, f32) if self.now.floats is None else self.now.floats.copy()

    def write(self, floats: np.ndarray, position: int) -> None:
        """Remember what read() gave after so many tokens."""
        self.now = self.kept = _Moment(0)
        if position:
            self.blank()[:] = floats
            self.advance(position)
        self.begin()


def _split(x: np.ndarray, *shape: int) -> np.ndarray:
    """The same memory in another shape: an error where that takes a copy."""
    result = x.view()
    result.shape = shape
    return result


def _rows(part: np.ndarray) -> np.ndarray:
    """Codes or scales, a copy: [kv_heads, blocks, 16 positions, codes or scales]."""
    return np.array(part, order="C").reshape(*part.shape[:2], LANES, math.prod(part.shape[2:]) // LANES)
