"""Matrices of binary planes in files: LUT-GEMM's binary-coded weights, and DB-LLM's dual binaries.

LUT-GEMM (Park et al. 2022) has no file format, but a layout of its kernels: ``bW`` int32 [in / 32, planes, out], bit k
of a word for input k of its 32, 1 for +alpha, 0 for -alpha; ``alpha`` [groups, planes, out]; ``q_bias`` [groups, out],
if there are offsets.

DB-LLM (Chen et al. 2024) was published without any: ours has ``wb1``, ``wb2`` int32 [out, in / 32], the lowest bit
first, and ``alpha1``, ``alpha2`` [out, groups]: W = alpha1 * wb1 + alpha2 * wb2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lutra.models.loaders.checkpoint import Entry, Source
from lutra.models.loaders.grids import FLOATS, WORDS, array_of, is_half, kept_of, part, take_parts
from lutra.models.loaders.words import unpack_words
from lutra.runtime.errors import CorruptModelError, UnsupportedModelError
from lutra.runtime.formats import Planes, is_finite, to_float32

__all__ = ["decode"]

MAX_PLANES = 8
Read = Callable[[], np.ndarray]


def decode(source: Source) -> bool:
    """Turn every matrix of planes into one in a format bcq or db; returns False for a directory without any."""
    kinds = {"bW": ("bcq", _binary_coded), "wb1": ("db-llm", _dual_binary)}
    found = [(name.rpartition(".")[0], name.rpartition(".")[2]) for name in source.entries]
    found = [(stem, end) for stem, end in found if end in kinds]
    if not found or source.quantization:
        return False
    for stem, end in found:
        source.kind, entry = kinds[end]
        source.entries[f"{stem}.weight"] = entry(source, stem)
    return True


@dataclass(frozen=True)
class _Summed:
    """A sum of planes, by how its parts are read: bits [planes, out, in], scale as Planes has it, offset or None."""

    stem: str
    planes: int
    shape: tuple[int, int]
    groups: int
    zero: float
    bits: Read
    scale: Read
    offset: Read | None = None

    def entry(self) -> Entry:
        """The matrix in a format that holds it exactly, or else as float32."""
        group = self.shape[1] // self.groups
        if group * self.groups != self.shape[1]:
            raise CorruptModelError(f"{self.stem!r:.80} has {self.groups} groups for {self.shape[1]} columns")
        if not 1 <= self.planes <= MAX_PLANES:
            raise UnsupportedModelError(f"{self.stem!r:.80} is a sum of {self.planes} planes; lutra runs {MAX_PLANES}")
        kept = kept_of(group)
        grids = [self.scale()] + ([self.offset()] if self.offset else [])
        if not all(map(is_finite, grids)):
            raise CorruptModelError(f"{self.stem!r:.80} has scales or offsets that are not finite numbers")
        if not (kept and all(map(is_half, grids))):
            return Entry("F32", self.shape, lambda: to_float32(self._matrix(group, group)))
        base = f"bcq{self.planes}" if self.zero else "db"
        format = f"{base}g{kept}{'z' if self.offset else ''}"
        return Entry(format, self.shape, lambda: self._matrix(group, kept))

    def _matrix(self, group: int, kept: int) -> Planes:
        own = np.arange(0, self.shape[1], kept) // group
        offset = self.offset()[:, own] if self.offset else None
        return Planes(self.bits(), self.scale()[:, :, own], kept, offset, self.zero)


def _binary_coded(source: Source, stem: str) -> Entry:
    parts = take_parts(source, stem, ("bW", "alpha", "q_bias"))
    words, alpha = part(parts, stem, "bW", WORDS, rank=3), part(parts, stem, "alpha", FLOATS, rank=3)
    groups = alpha.shape[0]
    blocks, planes, rows = words.shape
    bias = part(parts, stem, "q_bias", FLOATS) if "q_bias" in parts else None
    if alpha.shape[1:] != (planes, rows) or (bias and bias.shape != (groups, rows)):
        raise CorruptModelError(f"{stem!r:.80}: bW {words.shape} and alpha {alpha.shape} do not fit together")
    cols = blocks * 32

    def bits() -> np.ndarray:
        rows_of_words = array_of(words).transpose(1, 2, 0).reshape(planes * rows, blocks)
        return unpack_words(rows_of_words, 1, cols).reshape(planes, rows, cols)

    def scale() -> np.ndarray:
        return 2 * np.ascontiguousarray(to_float32(alpha.read()).transpose(1, 2, 0))

    def offset() -> np.ndarray:
        assert bias is not None
        return np.ascontiguousarray(to_float32(bias.read()).T)

    return _Summed(stem, planes, (rows, cols), groups, 0.5, bits, scale, offset if bias else None).entry()


def _dual_binary(source: Source, stem: str) -> Entry:
    parts = take_parts(source, stem, ("wb1", "wb2", "alpha1", "alpha2"))
    words = [part(parts, stem, name, WORDS) for name in ("wb1", "wb2")]
    alphas = [part(parts, stem, name, FLOATS) for name in ("alpha1", "alpha2")]
    rows, cols, groups = words[0].shape[0], words[0].shape[1] * 32, alphas[0].shape[1]
    if words[1].shape != words[0].shape or any(alpha.shape != (rows, groups) for alpha in alphas):
        shapes = [entry.shape for entry in (*words, *alphas)]
        raise CorruptModelError(f"{stem!r:.80}: planes and scales of {shapes} do not fit together")

    def bits() -> np.ndarray:
        return np.stack([unpack_words(array_of(plane), 1, cols) for plane in words])

    def scale() -> np.ndarray:
        return np.stack([to_float32(alpha.read()) for alpha in alphas])

    return _Summed(stem, 2, (rows, cols), groups, 0.0, bits, scale).entry()
