"""A session's memory, as native/kernels/kv_cache.h lays it out."""

from __future__ import annotations

import numpy as np

__all__ = ["Cache"]

LANES = 16  # positions in a vector of keys
SPAN = 256  # positions that attention takes as one
SPLIT_ROWS = 8  # rows of a step that it takes span by span


class Cache:
    """Keys and values of ``n_ctx`` positions for every layer.

    Pages are taken when they are first written: a long context costs nothing until it is used.

    memory: all of it, as kernels see it, dtype float32 or float16. Two views of it: keys
    [layers, kv_heads, blocks, head_dim, 16 positions] and values [layers, kv_heads, positions, head_dim].
    work: what attention lays aside during a step; zeros, once.
    """

    def __init__(self, layers: int, heads: int, kv_heads: int, head_dim: int, n_ctx: int, dtype: np.dtype):
        blocks = -(-n_ctx // LANES)
        self.memory = np.empty((layers, 2, kv_heads, blocks * LANES, head_dim), dtype)
        self.keys = self.memory[:, 0].reshape(layers, kv_heads, blocks, head_dim, LANES)
        self.values = self.memory[:, 1]
        self.work = np.zeros(SPLIT_ROWS * (kv_heads + heads * -(-n_ctx // SPAN) * (head_dim + 2)), np.float32)

    def read(self, n: int) -> np.ndarray:
        """The first n positions in plain order: [layers, 2, kv_heads, n, head_dim], a copy."""
        blocks = -(-n // LANES)
        keys = self.keys[:, :, :blocks].swapaxes(3, 4)
        keys = keys.reshape(*keys.shape[:2], blocks * LANES, keys.shape[4])
        return np.stack([keys[:, :, :n], self.values[:, :, :n]], axis=1)

    def write(self, plain: np.ndarray) -> None:
        """Fill the first positions from what read() gave."""
        n = plain.shape[3]
        self.values[:, :, :n] = plain[:, 1]
        for block in range(-(-n // LANES)):
            positions = plain[:, 0, :, block * LANES : (block + 1) * LANES]
            self.keys[:, :, block, :, : positions.shape[2]] = positions.swapaxes(2, 3)
