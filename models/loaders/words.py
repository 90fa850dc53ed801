"""Codes of a few bits in a row of 32-bit words, as GPTQ, AWQ, LittleBit and others store them."""

from __future__ import annotations

import numpy as np

from lutra import native

__all__ = ["unpack_words"]


def unpack_words(words: np.ndarray, bits: int, count: int, spaced: bool = False) -> np.ndarray:
    """The first ``count`` codes of every row: uint8 [rows, count].

    words: int32 or uint32 [rows, n]. bits: 1, 2, 3, 4 or 8. A row is one stream of bits, lowest first, in which 3-bit
    codes cross words; ``spaced``: as many whole codes as a word holds, and the rest of it unused. ValueError for rows
    of too few words.
    """
    if not spaced and words.strides[0] == 4 < words.strides[1] and bits > 1 and words.shape[1] * 32 == count * bits:
        return native.unpack_columns(words.T, bits, count)  # they lie side by side in the file
    # As many bytes as whole codes fill: the least that can be read by itself.
    size = 4 if spaced else 3 if bits == 3 else 1
    each = size * 8 // bits
    stream = np.ascontiguousarray(words, "<u4").view(np.uint8)
    if stream.shape[1] // size * each < count:
        raise ValueError(f"{words.shape[1]} words do not hold {count} codes of {bits} bits")
    stream = stream[:, : -(-count // each) * size].reshape(len(stream), -1, size)
    whole = stream[:, :, 0] if size == 1 else _joined(stream)
    if size == 1:
        return native.unpack_fields(whole, [native.Field(0, whole.shape[1], bits)])[:, :count]
    codes = np.empty((*whole.shape, each), np.uint8)
    for k in range(each):
        codes[:, :, k] = whole >> bits * k & (1 << bits) - 1
    return np.ascontiguousarray(codes.reshape(len(codes), -1)[:, :count])


def _joined(stream: np.ndarray) -> np.ndarray:
    whole = np.zeros(stream.shape[:2], np.uint32)
    for i in range(stream.shape[2]):
        whole |= stream[:, :, i].astype(np.uint32) << np.uint32(8 * i)
    return whole
