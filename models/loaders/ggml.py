"""ggml's tensor types: blocks of weights, as GGUF files store them, made matrices that our formats hold exactly.

Rows are whole blocks. A block has float16 scales and the bits of its codes, and scales of groups that are codes
themselves. Sources: ggml-common.h and ggml-quants.c of llama.cpp; for I2_S, bitnet.cpp; for STQ1_0, llama.cpp's pull
request 22836.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from lutra import native
from lutra.models.loaders import mxfp4
from lutra.runtime.errors import CorruptModelError
from lutra.runtime.formats import E4M3, Codebook, Coded, Matrix, Nested, iq4, is_finite, nvfp4, to_float32

__all__ = ["FLOATS", "SHARED", "TYPES", "UNREADABLE", "Blocks", "Type", "i2_s"]

Blocks = np.ndarray  # uint8 [rows, blocks of a row, bytes of a block]
_AT_ONCE = 1 << 20  # bytes of blocks looked at together

FLOATS = {0: "F32", 1: "F16", 28: "F64", 30: "BF16"}  # which are no blocks


@dataclass(frozen=True)
class Type:
    """A tensor type: its name, the weights and the bytes of a block, and the matrix that blocks are.

    format: the one of ours that holds such matrices, or what tells it of the matrix's blocks.
    """

    name: str
    weights: int
    nbytes: int
    matrix: Callable[[Blocks], Matrix]
    format: str | Callable[[Callable[[Blocks], Matrix], Blocks], str]

    def format_of(self, blocks: Blocks) -> str:
        """What an Entry says of these blocks: a format, "ternary" or "F32"."""
        return self.format if isinstance(self.format, str) else self.format(self.matrix, blocks)

    def read(self, blocks: Blocks, format: str) -> Matrix:
        """The matrix, for the format that was told. CorruptModelError for scales that are no numbers."""
        matrix = self.matrix(blocks)
        scales = getattr(matrix, "unit", None)
        if not is_finite(matrix.scale if scales is None else scales):  # type: ignore[union-attr]
            raise CorruptModelError(f"a tensor of type {self.name} has scales that are not finite numbers")
        if format == "ternary":
            assert isinstance(matrix, Coded)
            if (rows := _by_rows(matrix)) is None:
                raise CorruptModelError(f"a tensor of type {self.name} holds what is no ternary weight")
            return rows
        return to_float32(matrix) if format == "F32" else matrix


def _ternary(matrix: Callable[[Blocks], Matrix], blocks: Blocks) -> str:
    """ "ternary" where every row has one scale, else 2 bits in groups."""
    parts = (matrix(part) for part in _parts(blocks))
    first = matrix(blocks[:1])
    assert isinstance(first, Coded)
    grouped = f"q2g{min(first.group, 128)}"
    return "ternary" if all(_by_rows(part) for part in parts if isinstance(part, Coded)) else grouped


def _ternary_at(at: int) -> Callable[[Callable[[Blocks], Matrix], Blocks], str]:
    """The same for types of ternary codes alone, whose scale is at that byte: mostly one look at the scales will do."""

    def format(matrix: Callable[[Blocks], Matrix], blocks: Blocks) -> str:
        scale = _half(blocks, at)
        return "ternary" if (scale == scale[:, :1]).all() else _ternary(matrix, blocks)

    return format


def _by_rows(matrix: Coded) -> Coded | None:
    """A matrix of codes 0..2 around 1 with a scale per row instead of per group; None if it has none such."""
    codes = np.asarray(matrix.codes)
    if codes.max() > 2:
        return None
    signs = _signed(codes, 1)
    if (matrix.scale == matrix.scale[:, :1]).all():
        return Coded(signs, matrix.scale[:, :1])
    used = signs.reshape(len(signs), -1, matrix.group).any(axis=2)  # a block of zeros may have any scale
    scale = np.take_along_axis(matrix.scale, used.argmax(axis=1)[:, None], axis=1)
    return Coded(signs, scale) if np.array_equal(matrix.scale[used], (used * scale)[used]) else None


def _floating(_: Callable[[Blocks], Matrix], blocks: Blocks) -> str:
    return mxfp4.format_of(blocks[:, :, 0], blocks[:, :, 1:])


def _parts(blocks: Blocks) -> list[Blocks]:
    step = max(1, _AT_ONCE // (blocks.shape[1] * blocks.shape[2]))
    return [blocks[begin : begin + step] for begin in range(0, len(blocks), step)]


def _half(blocks: Blocks, at: int) -> np.ndarray:
    """The float16 at that byte of every block: [rows, blocks of a row]."""
    return np.ascontiguousarray(blocks.view("<f2")[:, :, at // 2])


def _all(scale: np.ndarray, zero: float) -> np.ndarray:
    """One zero for all: float32 of that shape."""
    return np.broadcast_to(np.float32(zero), scale.shape)


def _codes(b: Blocks, *fields: tuple[int, int, int, int], middle: int = 0, signed: bool = False) -> Any:
    """The blocks' codes: uint8 [rows, columns], or int8 if they are counted from a middle. They stay where they are
    until they are packed: an array of them all takes as long as all else.

    fields: first byte, bytes, bits of a code, bytes of a run, each. The first has the codes' lowest bits, the next
    those above. Bytes come in runs: first the codes in all their lowest bits, then those in the next, and so on.
    """
    shifts = accumulate((width for _, _, width, _ in fields), initial=0)
    known = tuple(
        native.Field(begin, count, width, shift, run)
        for (begin, count, width, run), shift in zip(fields, shifts, strict=False)
    )
    return native.InBlocks(b, known, middle, signed or middle > 0)


def _signed(codes: np.ndarray, middle: int) -> np.ndarray:
    """The same array, counted from the middle."""
    signed = codes.view(np.int8)
    signed -= np.int8(middle)
    return signed


def _trits(data: np.ndarray, digits: int) -> np.ndarray:
    """Base-3 digits of bytes, which are fractions: uint8 [rows, blocks, columns]. First the first of all bytes."""
    shifted = data[:, :, None] * np.array([1, 3, 9, 27, 81][:digits], np.uint8)[:, None]  # modulo 256
    trits = (shifted > 85).view(np.uint8) + (shifted > 170).view(np.uint8)  # three times as much, over 256
    return trits.reshape(*data.shape[:2], -1)


def _q1_0(b: Blocks) -> Coded:
    d = _half(b, 0)
    return Coded(_codes(b, (2, 16, 1, 1)), 2 * d.astype(np.float32), _all(d, 0.5), 128)


def _q2_0(b: Blocks) -> Coded:
    d = _half(b, 0)
    nbytes = b.shape[2] - 2
    return Coded(_codes(b, (2, nbytes, 2, 1)), d, _all(d, 1), 4 * nbytes)


def _q4_0(b: Blocks) -> Coded:
    d = _half(b, 0)
    return Coded(_codes(b, (2, 16, 4, 16)), d, _all(d, 8), 32)


def _q4_1(b: Blocks) -> Nested:
    return _with_offsets(_codes(b, (4, 16, 4, 16)), _half(b, 0), _half(b, 2))


def _q5_0(b: Blocks) -> Coded:
    d = _half(b, 0)
    return Coded(_codes(b, (6, 16, 4, 16), (2, 4, 1, 1)), d, _all(d, 16), 32)


def _q5_1(b: Blocks) -> Nested:
    return _with_offsets(_codes(b, (8, 16, 4, 16), (4, 4, 1, 1)), _half(b, 0), _half(b, 2))


def _with_offsets(codes: np.ndarray, scale: np.ndarray, offset: np.ndarray) -> Nested:
    """Groups of 32 that each are a super-block."""
    unit = np.stack([scale, offset])
    return Nested(codes, np.ones(unit.shape, np.int8), unit, 32, 32)


def _q8_0(b: Blocks) -> Coded:
    return Coded(_codes(b, (2, 32, 8, 32), signed=True), _half(b, 0), None, 32)


def _q2_k(b: Blocks) -> Nested:
    scale = np.stack([b[:, :, :16] & 15, b[:, :, :16] >> 4]).reshape(2, len(b), -1)
    return Nested(_codes(b, (16, 64, 2, 32)), scale.view(np.int8), _units(b, 80), 16, 256)


def _q3_k(b: Blocks) -> Nested:
    codes = _codes(b, (32, 64, 2, 32), (0, 32, 1, 32), middle=4)
    low = np.concatenate([b[:, :, 96:104] & 15, b[:, :, 96:104] >> 4], axis=2)
    high = np.concatenate([b[:, :, 104:108] >> np.uint8(shift) & 3 for shift in (0, 2, 4, 6)], axis=2)
    scale = (low | high << 4).view(np.int8) - np.int8(32)
    return Nested(codes, scale.reshape(1, len(b), -1), _half(b, 108)[None], 16, 256)


def _q4_k(b: Blocks) -> Nested:
    return Nested(_codes(b, (16, 128, 4, 32)), _six_bits(b), _units(b, 0), 32, 256)


def _q5_k(b: Blocks) -> Nested:
    return Nested(_codes(b, (48, 128, 4, 32), (16, 32, 1, 32)), _six_bits(b), _units(b, 0), 32, 256)


def _q6_k(b: Blocks) -> Nested:
    codes = _codes(b, (0, 128, 4, 64), (128, 64, 2, 32), middle=32)
    scale = np.ascontiguousarray(b[:, :, 192:208]).view(np.int8).reshape(1, len(b), -1)
    return Nested(codes, scale, _half(b, 208)[None], 16, 256)


def _units(b: Blocks, at: int) -> np.ndarray:
    """Of scales, and of minima, which are taken off: float16 [2, rows, blocks]."""
    return np.stack([_half(b, at), -_half(b, at + 2)])


def _six_bits(b: Blocks) -> np.ndarray:
    """Eight scales and eight minima in the twelve bytes from the fourth: int8 [2, rows, groups]. Four at a time."""
    scale, least, rest = np.moveaxis(b.view("<u4")[:, :, 1:4], 2, 0)
    found = np.empty((2, *scale.shape, 2), "<u4")  # the first four of a block, the others
    low, high = 0x0F0F0F0F, 0x30303030
    found[0, ..., 0], found[1, ..., 0] = scale & (low | high), least & (low | high)
    found[0, ..., 1], found[1, ..., 1] = rest & low | scale >> 2 & high, rest >> 4 & low | least >> 2 & high
    return found.view(np.int8).reshape(2, len(b), -1)


def _tq1_0(b: Blocks) -> Coded:
    codes = np.concatenate([_trits(b[:, :, :32], 5), _trits(b[:, :, 32:48], 5), _trits(b[:, :, 48:52], 4)], axis=2)
    d = _half(b, 52)
    return Coded(codes.reshape(len(b), -1), d, _all(d, 1), 256)


def _ptq1_0(b: Blocks) -> Coded:
    codes = np.concatenate([_trits(b[:, :, :16], 5), _trits(b[:, :, 16:24], 5), _trits(b[:, :, 24:26], 4)], axis=2)
    d = _half(b, 26)
    return Coded(codes.reshape(len(b), -1), d, np.ones_like(d), 128)


def _tq2_0(b: Blocks) -> Coded:
    d = _half(b, 64)
    return Coded(_codes(b, (0, 64, 2, 32)), d, _all(d, 1), 256)


def _stq1_0(b: Blocks) -> Coded:
    """Sherry (2026): of four weights, 16 apart, exactly one is 0."""
    slot = np.stack([b[:, :, :32] & 15, b[:, :, :32] >> 4], axis=3).reshape(*b.shape[:2], 64)
    negated = np.unpackbits(b[:, :, 32:40], axis=2, bitorder="little")
    fours = _FOURS[negated << 4 | slot].reshape(*b.shape[:2], 4, 16, 4)
    d = _half(b, 40)
    return Coded(np.ascontiguousarray(fours.swapaxes(3, 4)).reshape(len(b), -1), d, np.ones_like(d), 256)


def _sherry() -> np.ndarray:
    """Four codes around 1 for each sign and slot: uint8 [32, 4].

    A slot's upper bits say which is 0, its lower ones which of the last two others are negative; a sign negates all.
    """
    found = np.ones((2, 4, 4, 4), np.uint8)
    for zero in range(4):
        for lower in range(4):
            signs = np.array([1, 1 - 2 * (lower & 1), 1 - (lower & 2)])
            others = [lane for lane in range(4) if lane != zero]
            found[0, zero, lower, others], found[1, zero, lower, others] = 1 + signs, 1 - signs
    return found.reshape(32, 4)


_FOURS = _sherry()


def _mxfp4(b: Blocks) -> Codebook:
    return mxfp4.codebook(_codes(b, (1, 16, 4, 16)), b[:, :, 0])


def _nvfp4(b: Blocks) -> Codebook:
    """Scales have no sign, and what is no number is 0."""
    scale = b[:, :, :4] & 127
    scale[scale == 127] = 0
    unit = np.full((len(b), 1), 0.5, np.float32)
    return _in_values(nvfp4.VALUES, _codes(b, (4, 32, 4, 8)), scale.reshape(len(b), -1).view(E4M3), 16, unit, 0)


def _iq4_nl(b: Blocks) -> Codebook:
    return _in_values(iq4.VALUES, _codes(b, (2, 16, 4, 16)), _half(b, 0), 32)


def _iq4_xs(b: Blocks) -> Codebook:
    low = np.stack([b[:, :, 4:8] & 15, b[:, :, 4:8] >> 4], axis=3).reshape(*b.shape[:2], 8)
    high = b.view("<u2")[:, :, 1:2] >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    scale = (low | high.astype(np.uint8) << 4).view(np.int8) - np.int8(32)
    return _in_values(iq4.VALUES, _codes(b, (8, 128, 4, 16)), scale.reshape(len(b), -1), 32, _half(b, 0), 256)


def _in_values(
    values: Sequence[int], codes: Any, scale: np.ndarray, group: int, unit: np.ndarray | None = None, block: int = 0
) -> Codebook:
    return Codebook(codes, np.array(values, np.float32), scale, group, unit=unit, block=block)


def i2_s(data: np.ndarray, shape: tuple[int, int]) -> Coded:
    """bitnet.cpp's ternary matrix: a quarter of a byte per weight, then one float32 scale in 32 bytes.

    Columns come in runs of 128, the first 32 of them in the highest bits (the layout of x86 builds, which published
    files have). CorruptModelError for a code that means nothing.
    """
    lanes = _codes(data[:-32].reshape(-1, 1, 32), (0, 32, 2, 32))
    codes = np.asarray(lanes).reshape(-1, 4, 32)[:, ::-1].reshape(shape)
    scale = data[-32:-28].copy().view("<f4")
    if codes.max() > 2 or not is_finite(scale):
        raise CorruptModelError("a tensor of type I2_S holds what is no ternary weight", "Download the file again.")
    return Coded(_signed(codes, 1), np.broadcast_to(scale[:, None], (shape[0], 1)))


# By ggml's number. Several layouts share that of Q2_0, which is told by its size (SHARED).
TYPES = {
    2: Type("Q4_0", 32, 18, _q4_0, "q4g32"),
    3: Type("Q4_1", 32, 20, _q4_1, "q4g32s32m"),
    6: Type("Q5_0", 32, 22, _q5_0, "q5g32"),
    7: Type("Q5_1", 32, 24, _q5_1, "q5g32s32m"),
    8: Type("Q8_0", 32, 34, _q8_0, "q8g32"),
    10: Type("Q2_K", 256, 84, _q2_k, "q2g16s256m"),
    11: Type("Q3_K", 256, 110, _q3_k, "q4g16s256"),
    12: Type("Q4_K", 256, 144, _q4_k, "q4g32s256m"),
    13: Type("Q5_K", 256, 176, _q5_k, "q5g32s256m"),
    14: Type("Q6_K", 256, 210, _q6_k, "q6g16s256"),
    20: Type("IQ4_NL", 32, 18, _iq4_nl, "iq4g32"),
    23: Type("IQ4_XS", 256, 136, _iq4_xs, "iq4g32s256"),
    34: Type("TQ1_0", 256, 54, _tq1_0, _ternary_at(52)),
    35: Type("TQ2_0", 256, 66, _tq2_0, _ternary_at(64)),
    39: Type("MXFP4", 32, 17, _mxfp4, _floating),
    40: Type("NVFP4", 64, 36, _nvfp4, "nvfp4"),
    41: Type("Q1_0", 128, 18, _q1_0, "b1g128"),
    42: Type("Q2_0", 64, 18, _q2_0, _ternary),
    43: Type("STQ1_0", 256, 42, _stq1_0, _ternary_at(40)),  # Tencent's
    142: Type("PQ2_0", 128, 34, _q2_0, _ternary),
    143: Type("PTQ1_0", 128, 28, _ptq1_0, _ternary_at(26)),
}
SHARED = {42: (Type("Q2_0", 128, 34, _q2_0, _ternary), TYPES[43])}  # PrismML's, and Tencent's earlier files'

UNREADABLE = {
    4: "Q4_2", 5: "Q4_3", 9: "Q8_1", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    21: "IQ3_S", 22: "IQ2_S", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 29: "IQ1_M", 31: "Q4_0_4_4",
    32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "I2_S", 37: "I8_S", 38: "TL1",
}  # fmt: skip
